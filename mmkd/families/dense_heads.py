"""The dense heads that mmkd can read: what their outputs are, and where their labels stand.

Heads of mmdet return lists of maps in different orders, codings and scales. :data:`DENSE_HEADS` has an entry
for each class that is understood. A head that is not in it is refused, since its outputs would be compared
as something that they are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmdet.models import dense_heads as mmdet_heads
from mmdet.structures.bbox import distance2bbox, get_box_tensor
from torch import Tensor

from ..errors import ConfigError
from ..recorder import Source
from ..types import Detector
from .class_scores import class_probabilities, uses_softmax

# Values that are one per position and prior: what mmdet multiplies class scores with.
CENTERNESS, IOU, OBJECTNESS = 'centerness', 'iou', 'objectness'
# Where no gradient comes from: the logarithm of a probability.
MIN_PROBABILITY = 1e-6
# The labels are the second argument of the classification loss, level by level.
LOSS_CLS = Source('bbox_head.loss_cls', capture='input', index=1)
# The methods that an entry describes. A subclass of a head that replaces one of them is another head.
OUTPUT_METHODS = (
    'forward forward_single predict_by_feat _predict_by_feat_single _bbox_decode'.split()
)
# The methods that decide where its labels stand.
LABEL_METHODS = 'loss loss_by_feat loss_by_feat_single get_targets'.split()


@dataclass(frozen=True)
class DenseHead:
    """How the outputs of a class of dense heads are read: class scores first, then boxes.

    Args:
        coding: Of boxes. ``coder``: as the head's ``bbox_coder`` decodes them; ``distribution``: of
            distances in strides, over bins (GFL); ``corners``: in strides; ``yolox``: as ``_bbox_decode``
            decodes them.
        probabilities: Whether class scores are probabilities, not logits.
        box_in_training: Position of the boxes among the outputs in training mode; 1 in evaluation.
        quality: What the third output estimates, before a sigmoid; None where there is none.
        score: How ``predict`` combines class probability and quality: ``product``, or ``root`` of it.
        labels: What to record for the labels of all priors; the first that is called. Integers, background
            ``num_classes`` or below 0; or numbers above 0 for objects. None: nothing holds them.
        labels_by_image: Whether labels stand image by image, each with all levels; else level by level.
        can_cross: Whether the rest of the head can run on other maps at one of its layers (CrossKD).
    """

    coding: str = 'coder'
    probabilities: bool = False
    box_in_training: int = 1
    quality: str | None = None
    score: str = 'product'
    labels: tuple[Source, ...] = (LOSS_CLS,)
    labels_by_image: bool = False
    can_cross: bool = True


#: By the name of mmdet's class.
DENSE_HEADS = {
    'RetinaHead': DenseHead(),
    'RetinaSepBNHead': DenseHead(),
    'RPNHead': DenseHead(),
    'SSDHead': DenseHead(  # which calls torch's cross entropy; its only layers are the predictors
        labels=(Source('bbox_head', 'input', 'loss_by_feat_single', 3),),
        labels_by_image=True,
        can_cross=False,
    ),
    'FCOSHead': DenseHead(quality=CENTERNESS),
    'ATSSHead': DenseHead(quality=CENTERNESS),
    'PAAHead': DenseHead(  # its loss_cls is called twice per image, first on chosen priors
        quality=IOU,
        score='root',
        labels=(Source('bbox_head', method='paa_reassign', index=0),),
        labels_by_image=True,
    ),
    'DDODHead': DenseHead(quality=IOU),
    'AutoAssignHead': DenseHead(quality=OBJECTNESS, labels=()),  # weights in place of labels
    'GFLHead': DenseHead(coding='distribution'),
    'LDHead': DenseHead(coding='distribution'),
    'VFNetHead': DenseHead(  # boxes steer the sampling of the layers that predict classes
        box_in_training=2, can_cross=False
    ),
    'TOODHead': DenseHead(  # both predictions are made of all layers of one tower
        coding='corners',
        probabilities=True,
        labels=(LOSS_CLS, Source('bbox_head.initial_loss_cls', capture='input', index=1)),
        can_cross=False,
    ),
    'RTMDetHead': DenseHead(),
    'RTMDetSepBNHead': DenseHead(),
    'YOLOXHead': DenseHead(
        coding='yolox',
        quality=OBJECTNESS,
        labels=(Source('bbox_head.loss_obj', capture='input', index=1),),
        labels_by_image=True,
    ),
}


def dense_head(head: Detector) -> DenseHead:
    """The entry of a head's class, or of the class in the table that it inherits all described methods from.

    Raises:
        ConfigError: There is none.
    """
    base = _class_in_table(type(head))
    if base is None or not _inherits(head, base, OUTPUT_METHODS):
        raise ConfigError(
            f'the outputs of a {type(head).__name__} are not known to mmkd; it reads '
            f'{", ".join(DENSE_HEADS)}, and subclasses that keep their forward and predict methods; compare '
            f'features'
        )
    return DENSE_HEADS[base.__name__]


def label_sources(head: Detector) -> tuple[Source, ...]:
    """What to record for a head's labels (:attr:`DenseHead.labels`); none where it assigns them otherwise."""
    entry, base = dense_head(head), _class_in_table(type(head))
    return entry.labels if base is not None and _inherits(head, base, LABEL_METHODS) else ()


def _class_in_table(kind: type) -> type | None:
    """The class itself, or its nearest parent, that is in the table."""
    for base in kind.__mro__:
        if base.__name__ in DENSE_HEADS and base is getattr(mmdet_heads, base.__name__):
            return base
    return None


def _inherits(head: Detector, base: type, methods: list[str]) -> bool:
    kind = type(head)
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in methods)


def class_logits(head: Detector, values: Tensor) -> Tensor:
    """Class scores before the activation, of a head's class output; any shape."""
    if not dense_head(head).probabilities:
        return values
    return values.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY).logit()


def class_output(head: Detector, logits: Tensor) -> Tensor:
    """The inverse of :func:`class_logits`."""
    return logits.sigmoid() if dense_head(head).probabilities else logits


def prediction_scores(head: Detector, logits: Tensor, quality: Tensor | None) -> Tensor:
    """The scores that a head's ``predict`` gives to each class, as far as it uses sigmoids or a softmax.

    Args:
        head: The dense head.
        logits: Class scores before the activation, shape (…, classes), one more with a softmax.
        quality: Before a sigmoid, shape (…, 1); None for a head without.

    Returns:
        Shape (…, classes), without the background.
    """
    scores = class_probabilities(logits, uses_softmax(head))
    if quality is None:
        return scores
    scores = scores * quality.sigmoid()
    return scores.sqrt() if dense_head(head).score == 'root' else scores


def predicted_boxes(head: Detector, level: int, values: Tensor) -> Tensor:
    """Boxes that a dense head predicts at every prior of a level.

    Args:
        head: The dense head, in the mode (training or not) in which it gave ``values``.
        level: Which of its levels.
        values: Its box output there, shape (N, numbers, H, W).

    Returns:
        Corners x1, y1, x2, y2 in pixels, shape (N, H * W * priors per position, 4).
    """
    generator = head.prior_generator
    stride = generator.strides[level]
    stride = stride if isinstance(stride, (int, float)) else stride[0]
    priors = generator.single_level_grid_priors(values.shape[2:], level, device=values.device)
    rows = values.permute(0, 2, 3, 1).float().reshape(len(values) * len(priors), -1)
    return decode_boxes(head, priors.repeat(len(values), 1), stride, rows).reshape(
        len(values), -1, 4
    )


def decode_boxes(head: Detector, priors: Tensor, stride: Tensor | float, rows: Tensor) -> Tensor:
    """Boxes that a dense head, or an RPN, predicts at priors of any level.

    Args:
        head: The head, in the mode in which it gave ``rows``.
        priors: Anchors, shape (n, 4), or points, shape (n, 2).
        stride: Of the level of each prior, shape (n, 1), or of all.
        rows: Its box output there, shape (n, numbers).

    Returns:
        Corners x1, y1, x2, y2 in pixels, shape (n, 4).
    """
    coding = dense_head(head).coding
    if coding == 'yolox':
        strides = torch.as_tensor(stride, device=rows.device).expand(len(rows), 2)
        return head._bbox_decode(torch.cat([priors, strides], -1), rows[None])[0]
    if coding == 'distribution':
        centers = (priors[:, :2] + priors[:, 2:]) / 2
        return distance2bbox(centers, head.integral(rows) * stride)
    if coding == 'corners':
        return rows * stride
    if head.training and getattr(head, 'norm_on_bbox', False):
        rows = rows * stride  # FCOS gives pixels in evaluation mode only
    return get_box_tensor(head.bbox_coder.decode(priors, rows))


def encode_boxes(head: Detector, priors: Tensor, stride: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of :func:`decode_boxes`, of a head in evaluation mode that gives no distributions."""
    coding = dense_head(head).coding
    if coding == 'yolox':
        center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        return torch.cat([(center - priors) / stride, (size / stride).log()], -1)
    if coding == 'corners':
        return boxes / stride
    return head.bbox_coder.encode(priors, boxes)
