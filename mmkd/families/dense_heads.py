"""The supported dense heads: what each output means, and where the assigned labels can be recorded.

Heads of mmdet return lists of maps in different orders, codings and scales. :data:`DENSE_HEADS` describes
each supported class. Other heads are refused, because their outputs might be misinterpreted.
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

# Quality scores, one value per prior, with which mmdet multiplies class scores.
CENTERNESS, IOU, OBJECTNESS = 'centerness', 'iou', 'objectness'
# Probabilities are clamped to [MIN_PROBABILITY, 1 - MIN_PROBABILITY] before the logit.
MIN_PROBABILITY = 1e-6
# The labels are the second argument of the classification loss, level by level.
LOSS_CLS = Source('bbox_head.loss_cls', capture='input', index=1)
# The methods that determine the outputs. A subclass that overrides one of them is not supported.
OUTPUT_METHODS = (
    'forward forward_single predict_by_feat _predict_by_feat_single _bbox_decode'.split()
)
# The methods that determine where the labels can be recorded.
LABEL_METHODS = 'loss loss_by_feat loss_by_feat_single get_targets'.split()


@dataclass(frozen=True)
class DenseHead:
    """Describes the outputs of a class of dense heads. Class scores come first, boxes second.

    Args:
        coding: The coding of the boxes. ``coder``: decoded by the head's ``bbox_coder``. ``distribution``:
            box-edge distributions over bins, in strides (GFL). ``corners``: corners in strides. ``yolox``:
            decoded by ``_bbox_decode``.
        probabilities: Whether class scores are probabilities instead of logits.
        box_in_training: Index of the boxes among the outputs in training mode; in evaluation mode it is 1.
        quality: What the third output estimates, before a sigmoid; None if there is no third output.
        score: How ``predict`` combines class probability and quality: ``product``, or ``root`` (the square
            root of the product).
        labels: The sources of the labels of all priors; the first one that is called is used. Labels are
            integers, with the background as ``num_classes`` or below 0, or floats above 0 for objects. An
            empty tuple: the labels cannot be recorded.
        labels_by_image: Whether the labels are ordered by image, each with all levels; else by level.
        can_cross: Whether the rest of the head can run from one of its layers on other maps (CrossKD).
    """

    coding: str = 'coder'
    probabilities: bool = False
    box_in_training: int = 1
    quality: str | None = None
    score: str = 'product'
    labels: tuple[Source, ...] = (LOSS_CLS,)
    labels_by_image: bool = False
    can_cross: bool = True


#: The supported heads, by the name of their class in mmdet.
DENSE_HEADS = {
    'RetinaHead': DenseHead(),
    'RetinaSepBNHead': DenseHead(),
    'RPNHead': DenseHead(),
    'SSDHead': DenseHead(  # its loss is torch's cross entropy, and its only layers are the predictors
        labels=(Source('bbox_head', 'input', 'loss_by_feat_single', 3),),
        labels_by_image=True,
        can_cross=False,
    ),
    'FCOSHead': DenseHead(quality=CENTERNESS),
    'ATSSHead': DenseHead(quality=CENTERNESS),
    'PAAHead': DenseHead(  # calls loss_cls twice per image, first on a selection of priors
        quality=IOU,
        score='root',
        labels=(Source('bbox_head', method='paa_reassign', index=0),),
        labels_by_image=True,
    ),
    'DDODHead': DenseHead(quality=IOU),
    'AutoAssignHead': DenseHead(quality=OBJECTNESS, labels=()),  # has weights instead of labels
    'GFLHead': DenseHead(coding='distribution'),
    'LDHead': DenseHead(coding='distribution'),
    'VFNetHead': DenseHead(  # the class layers sample at positions that depend on the boxes
        box_in_training=2, can_cross=False
    ),
    'TOODHead': DenseHead(  # classes and boxes are both predicted from all layers of one tower
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
    """Return the entry of a head in :data:`DENSE_HEADS`.

    A subclass has the entry of its parent if it inherits all methods that determine the outputs.

    Raises:
        ConfigError: The head is not supported.
    """
    base = _class_in_table(type(head))
    if base is None or not _inherits(head, base, OUTPUT_METHODS):
        raise ConfigError(
            f'a dense head must be one of {", ".join(DENSE_HEADS)}, or a subclass that keeps their forward '
            f'and predict methods, got {type(head).__name__}; compare features'
        )
    return DENSE_HEADS[base.__name__]


def label_sources(head: Detector) -> tuple[Source, ...]:
    """Return the sources of a head's labels (:attr:`DenseHead.labels`).

    The tuple is empty if the head overrides the methods that assign labels.
    """
    entry, base = dense_head(head), _class_in_table(type(head))
    return entry.labels if base is not None and _inherits(head, base, LABEL_METHODS) else ()


def _class_in_table(kind: type) -> type | None:
    """Return the class itself or its nearest parent that is in the table."""
    for base in kind.__mro__:
        if base.__name__ in DENSE_HEADS and base is getattr(mmdet_heads, base.__name__):
            return base
    return None


def _inherits(head: Detector, base: type, methods: list[str]) -> bool:
    kind = type(head)
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in methods)


def class_logits(head: Detector, values: Tensor) -> Tensor:
    """Convert a head's class output, of any shape, to scores before the activation."""
    if not dense_head(head).probabilities:
        return values
    return values.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY).logit()


def class_output(head: Detector, logits: Tensor) -> Tensor:
    """Convert scores before the activation to a head's class output: the inverse of :func:`class_logits`."""
    return logits.sigmoid() if dense_head(head).probabilities else logits


def prediction_scores(head: Detector, logits: Tensor, quality: Tensor | None) -> Tensor:
    """Return the score of each class as the head's ``predict`` computes it.

    Args:
        head: The dense head.
        logits: Class scores before the activation, shape (…, classes), or (…, classes + 1) with a softmax.
        quality: Quality before a sigmoid, shape (…, 1); None for a head without quality.

    Returns:
        Shape (…, classes), without the background.
    """
    scores = class_probabilities(logits, uses_softmax(head))
    if quality is None:
        return scores
    scores = scores * quality.sigmoid()
    return scores.sqrt() if dense_head(head).score == 'root' else scores


def predicted_boxes(head: Detector, level: int, values: Tensor) -> Tensor:
    """Decode the boxes that a dense head predicts at all priors of a level.

    Args:
        head: The dense head, in the mode (training or evaluation) in which it computed ``values``.
        level: Index of the level.
        values: The box output of the level, shape (N, numbers, H, W).

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
    """Decode the boxes that a dense head or an RPN predicts at priors of any level.

    Args:
        head: The head, in the mode (training or evaluation) in which it computed ``rows``.
        priors: Anchors, shape (n, 4), or points, shape (n, 2).
        stride: The stride of each prior's level, shape (n, 1), or one stride for all.
        rows: The box output at the priors, shape (n, numbers).

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
        rows = rows * stride  # FCOS outputs pixels in evaluation mode only
    return get_box_tensor(head.bbox_coder.decode(priors, rows))


def encode_boxes(head: Detector, priors: Tensor, stride: Tensor, boxes: Tensor) -> Tensor:
    """Encode boxes: the inverse of :func:`decode_boxes`.

    The head must be in evaluation mode, with another coding than distributions.
    """
    coding = dense_head(head).coding
    if coding == 'yolox':
        center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        return torch.cat([(center - priors) / stride, (size / stride).log()], -1)
    if coding == 'corners':
        return boxes / stride
    return head.bbox_coder.encode(priors, boxes)
