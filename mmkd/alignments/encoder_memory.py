"""Alignments of the encoder outputs of detection transformers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps, get_box_tensor
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import ConfigError
from ..families.class_scores import class_probabilities, uses_softmax
from ..families.transformer import is_transformer, num_queries
from ..recorder import Recorder, Source
from ..types import Detector
from .base import Alignment, Pair, Step
from .features import common_levels, levels_of
from .padding import size_divisor, valid_positions
from .queries import HEAD, QUERIES

FEATURES = Source('', method='extract_feat')


@TASK_UTILS.register_module()
class EncoderMemoryAlignment(Alignment):
    """Pairs the encoder output of a transformer with an output of the other model, one row per position.

    The tokens of ``encoder`` are reshaped to maps, and maps of the same size are compared, as in
    :class:`FeatureAlignment`. An encoder with one level (DETR) can thus be compared with an encoder with
    four (Deformable DETR). The other model may also be a convolutional detector; its maps, by default
    those of the neck, are then compared.

    Args:
        count_padding: Whether to compare positions on the padding of a batch. With False they have weight
            0.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='EncoderMemoryAlignment', count_padding=True))
        >>> align.default_module
        'encoder'
    """

    default_module = 'encoder'

    def __init__(self, count_padding: bool = False) -> None:
        self.count_padding = count_padding
        self.is_transformer = dict(student=True, teacher=True)

    def default_source(self, owner: str, model: Detector) -> Source:
        """Return ``encoder`` for a transformer, ``neck`` for another detector."""
        return Source(self.default_module if is_transformer(model) else 'neck')

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check that one model has an encoder and the teacher is live; see :meth:`Alignment.check`."""
        for owner, model in (('student', student), ('teacher', teacher)):
            self.is_transformer[owner] = is_transformer(model)
        if options.get('cached'):
            raise ConfigError(
                "align: a cache cannot store an encoder's output; use align=dict(type='FeatureAlignment') on "
                'backbone or neck'
            )
        if self.is_transformer['teacher']:
            _require_same_padding(student, teacher)
        if not any(self.is_transformer.values()):
            raise ConfigError(
                f'align: student or teacher must have an encoder, got {type(student).__name__} and '
                f"{type(teacher).__name__}; use align=dict(type='FeatureAlignment')"
            )

    @property
    def student_sources(self) -> list[Source]:
        """The feature maps of a transformer, for the sizes of the encoder's levels."""
        return [FEATURES] if self.is_transformer['student'] else []

    @property
    def teacher_sources(self) -> list[Source]:
        """The feature maps of a transformer, for the sizes of the encoder's levels."""
        return [FEATURES] if self.is_transformer['teacher'] else []

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair maps of the same size as rows, shape (N * H * W, C); see :meth:`Alignment.__call__`."""
        pairs = common_levels(
            self.maps(student, step.student_record, 'student'),
            self.maps(teacher, step.teacher_record, 'teacher'),
            connector=None if self.connected else 'LinearConnector',
            scale=step.scale,
        )
        weights = [self.weight(other, step) for _, other in pairs]
        return [
            Pair(_rows(level), _rows(other), None if weight is None else weight.flatten())
            for (level, other), weight in zip(pairs, weights, strict=True)
        ]

    def maps(self, value: Any, record: Recorder, owner: str) -> list[Tensor]:
        """Return a recorded output as maps, shape (N, C, H, W) each.

        Args:
            value: Tokens, shape (N, T, C), or maps.
            record: The recorder of the model.
            owner: ``student`` or ``teacher``.
        """
        if not isinstance(value, Tensor) or value.dim() != 3 or not self.is_transformer[owner]:
            return levels_of(value, owner)
        sizes = [tuple(level.shape[-2:]) for level in record[FEATURES]]
        counts = [height * width for height, width in sizes]
        if sum(counts) != value.shape[1]:
            sizes, counts = sizes[-1:], counts[-1:]  # DETR's encoder reads only the last level
        if sum(counts) != value.shape[1]:
            raise ConfigError(
                f'{owner}: the recorded output must have {sum(counts)} tokens, one per position of the maps, '
                f"got {value.shape[1]}; record 'encoder'"
            )
        tokens = value.transpose(1, 2).split(counts, -1)
        return [level.unflatten(-1, size) for level, size in zip(tokens, sizes, strict=True)]

    def weight(self, level: Tensor, step: Step) -> Tensor | None:
        """Return the weight of each position of the teacher's map, shape (N, H, W); None: equal weights."""
        if self.count_padding:
            return None
        valid = valid_positions(step.data_samples, tuple(level.shape[-2:]), level.device)
        return None if valid is None else valid.float()


@TASK_UTILS.register_module()
class QueryWeightedFeatureAlignment(EncoderMemoryAlignment):
    r"""Pairs feature maps and weights each position by its similarity to the teacher's queries.

    With ``MSE``, this is the target-aware feature loss of DETRDistill (Chang et al., ICCV 2023, arXiv
    2211.10156). The weight of position :math:`x` of the teacher's map :math:`F` is

    .. math:: \sum_i c_i^\gamma u_i^{1-\gamma} \max(0, \cos(F_x, q_i))^2

    with the teacher's queries :math:`q_i` of the last decoder layer, the probability :math:`c_i` of a
    query's most probable shared class, and the largest overlap (IoU) :math:`u_i` of its box with a labelled
    object.

    Differences to the paper: the sum over positions is divided by the sum of these weights instead of their
    number, so the loss does not decrease with the teacher's confidence. :math:`u_i` needs no matching.

    Args:
        gamma: Exponent of the confidence in the quality of a query. With 1, no labels are needed.
        count_padding: See :class:`EncoderMemoryAlignment`.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='QueryWeightedFeatureAlignment', gamma=1.0))
        >>> align.needs_class_map, align.gamma
        (True, 1.0)
    """

    needs_class_map = True

    def __init__(self, gamma: float = 0.5, count_padding: bool = False) -> None:
        super().__init__(count_padding)
        if not 0 <= gamma <= 1:
            raise ConfigError(f'align.gamma: must be in [0, 1], got {gamma}')
        self.gamma = gamma

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check as :class:`EncoderMemoryAlignment` does, and that the teacher has decoder queries."""
        super().check(student, teacher, options)
        if not self.is_transformer['teacher']:
            raise ConfigError(
                f'align: {type(self).__name__} needs a teacher with decoder queries, but a '
                f"{type(teacher).__name__} has none; use align=dict(type='FeatureAlignment')"
            )

    @property
    def teacher_sources(self) -> list[Source]:
        """The feature maps, the head's output and the decoder queries."""
        return [*super().teacher_sources, HEAD, QUERIES]

    @torch.no_grad()
    def weight(self, level: Tensor, step: Step) -> Tensor:
        """Return the weight of each position of the teacher's map, shape (N, H, W)."""
        count = num_queries(step.teacher)
        queries = step.teacher_record[QUERIES][-1][:, -count:].float()
        if queries.shape[-1] != level.shape[1]:
            raise ConfigError(
                f'teacher: the recorded maps must have {queries.shape[-1]} channels, as many as the queries, '
                f"got {level.shape[1]}; record 'neck' or 'encoder'"
            )
        cosine = torch.einsum(
            'nqc,nchw->nqhw', F.normalize(queries, dim=-1), F.normalize(level.float(), dim=1)
        )
        weight = torch.einsum('nq,nqhw->nhw', self.quality(step), cosine.clamp(min=0).square())
        valid = super().weight(level, step)
        return weight if valid is None else weight * valid

    def quality(self, step: Step) -> Tensor:
        """Return the quality of each of the teacher's queries, shape (N, queries), in [0, 1]."""
        scores, boxes = (value[-1].float() for value in step.teacher_record[HEAD])
        softmax = uses_softmax(step.teacher.bbox_head)
        scores = step.class_map.teacher_logits(scores, softmax)
        confidence = class_probabilities(scores, softmax).amax(-1)
        if self.gamma == 1:
            return confidence
        per_image = []
        for sample in step.data_samples:
            height, width = sample.img_shape[:2]
            found = get_box_tensor(sample.gt_instances.bboxes).to(boxes)
            per_image.append(found / found.new_tensor([width, height, width, height]))
        # An additional empty box: an image without objects then has a largest overlap of 0.
        labelled = F.pad(pad_sequence(per_image, batch_first=True), (0, 0, 0, 1))
        overlap = bbox_overlaps(bbox_cxcywh_to_xyxy(boxes), labelled).amax(-1)
        return confidence**self.gamma * overlap ** (1 - self.gamma)


def _require_same_padding(student: Detector, teacher: Detector) -> None:
    """Raise a ConfigError if the teacher pads images further: maps can be cropped, tokens cannot."""
    ours, theirs = (size_divisor(model.data_preprocessor) for model in (student, teacher))
    if ours % theirs:
        raise ConfigError(
            f'model.student.data_preprocessor.pad_size_divisor: must be a multiple of {theirs}, the divisor '
            f"of the teacher, to compare the teacher's encoder, got {ours}; set it to "
            f'{math.lcm(ours, theirs)}'
        )


def _rows(level: Tensor) -> Tensor:
    return level.permute(0, 2, 3, 1).flatten(0, 2)
