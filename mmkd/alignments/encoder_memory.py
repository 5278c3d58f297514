"""Encoder outputs of detection transformers."""

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
    """Pairs a transformer's encoder output with the other model's, one row per position.

    The tokens of ``encoder`` are arranged as the maps they were made from, and maps of the same size
    are compared (as :class:`FeatureAlignment` does). So an encoder of one level (DETR) can be compared
    with one of four (Deformable DETR), and the other model may also be a convolutional detector whose
    recorded output is maps, by default those of its neck.

    Positions on the padding of a batch have weight 0, unless ``count_padding``.

    Args:
        count_padding: Whether positions on padding count.
    """

    default_module = 'encoder'

    def __init__(self, count_padding: bool = False) -> None:
        self.count_padding = count_padding
        self.is_transformer = dict(student=True, teacher=True)

    def default_source(self, owner: str, model: Detector) -> Source:
        return Source(self.default_module if is_transformer(model) else 'neck')

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        for owner, model in (('student', student), ('teacher', teacher)):
            self.is_transformer[owner] = is_transformer(model)
        if options.get('cached'):
            raise ConfigError(
                "a cache cannot hold an encoder's output; use align=dict(type='FeatureAlignment') on "
                'backbone or neck'
            )
        if self.is_transformer['teacher']:
            _require_same_padding(student, teacher)
        if not any(self.is_transformer.values()):
            raise ConfigError(
                f'neither the student, a {type(student).__name__}, nor the teacher, a '
                f"{type(teacher).__name__}, has an encoder; use align=dict(type='FeatureAlignment')"
            )

    @property
    def student_sources(self) -> list[Source]:
        return [FEATURES] if self.is_transformer['student'] else []

    @property
    def teacher_sources(self) -> list[Source]:
        return [FEATURES] if self.is_transformer['teacher'] else []

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
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
        """A recorded output as maps, shape (N, C, H, W) each.

        Args:
            value: Tokens, shape (N, T, C), or maps.
            record: What its model recorded.
            owner: ``student`` or ``teacher``.
        """
        if not isinstance(value, Tensor) or value.dim() != 3 or not self.is_transformer[owner]:
            return levels_of(value, owner)
        sizes = [tuple(level.shape[-2:]) for level in record[FEATURES]]
        counts = [height * width for height, width in sizes]
        if sum(counts) != value.shape[1]:
            sizes, counts = sizes[-1:], counts[-1:]  # DETR's encoder reads the last level alone
        if sum(counts) != value.shape[1]:
            raise ConfigError(
                f'{owner}: the recorded output must have one token per position of its maps, '
                f"{sum(counts)}, got {value.shape[1]}; record 'encoder'"
            )
        tokens = value.transpose(1, 2).split(counts, -1)
        return [level.unflatten(-1, size) for level, size in zip(tokens, sizes, strict=True)]

    def weight(self, level: Tensor, step: Step) -> Tensor | None:
        """Weight of each position of the teacher's map, shape (N, H, W); None: all count alike."""
        if self.count_padding:
            return None
        valid = valid_positions(step.data_samples, tuple(level.shape[-2:]), level.device)
        return None if valid is None else valid.float()


@TASK_UTILS.register_module()
class QueryWeightedFeatureAlignment(EncoderMemoryAlignment):
    r"""Pairs feature maps and weights each position by its similarity to the teacher's queries.

    The target-aware feature loss of DETRDistill (Chang et al., ICCV 2023, arXiv 2211.10156),
    to be used with ``MSE``. The weight of position :math:`x` of the teacher's map :math:`F` is

    .. math:: \sum_i c_i^\gamma u_i^{1-\gamma} \max(0, \cos(F_x, q_i))^2

    for the teacher's queries :math:`q_i` of the last decoder layer, :math:`c_i` the probability of
    its most probable shared class, :math:`u_i` the largest overlap (IoU) of its box with a labelled
    object. Differences to the paper: the sum over positions is divided by the sum of these weights
    instead of their number, so the loss does not fall as the teacher's confidence does; and :math:`u_i`
    needs no matching.

    Args:
        gamma: Exponent of the confidence in a query's quality. 1 needs no labels.
        count_padding: As :class:`EncoderMemoryAlignment`.
    """

    needs_class_map = True

    def __init__(self, gamma: float = 0.5, count_padding: bool = False) -> None:
        super().__init__(count_padding)
        if not 0 <= gamma <= 1:
            raise ConfigError(f'align.gamma: must be in [0, 1], got {gamma}')
        self.gamma = gamma

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        if not self.is_transformer['teacher']:
            raise ConfigError(
                f"{type(self).__name__} needs the teacher's decoder queries; the teacher, a "
                f'{type(teacher).__name__}, has none'
            )

    @property
    def teacher_sources(self) -> list[Source]:
        return [*super().teacher_sources, HEAD, QUERIES]

    @torch.no_grad()
    def weight(self, level: Tensor, step: Step) -> Tensor:
        count = num_queries(step.teacher)
        queries = step.teacher_record[QUERIES][-1][:, -count:].float()
        if queries.shape[-1] != level.shape[1]:
            raise ConfigError(
                f"the teacher's maps have {level.shape[1]} channels and its queries "
                f"{queries.shape[-1]}, so they cannot be compared; record 'neck' or 'encoder'"
            )
        cosine = torch.einsum(
            'nqc,nchw->nqhw', F.normalize(queries, dim=-1), F.normalize(level.float(), dim=1)
        )
        weight = torch.einsum('nq,nqhw->nhw', self.quality(step), cosine.clamp(min=0).square())
        valid = super().weight(level, step)
        return weight if valid is None else weight * valid

    def quality(self, step: Step) -> Tensor:
        """The quality of each of the teacher's queries, shape (N, queries), in [0, 1]."""
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
        # One more, empty box, so that an image without objects has a largest overlap, 0.
        labelled = F.pad(pad_sequence(per_image, batch_first=True), (0, 0, 0, 1))
        overlap = bbox_overlaps(bbox_cxcywh_to_xyxy(boxes), labelled).amax(-1)
        return confidence**self.gamma * overlap ** (1 - self.gamma)


def _require_same_padding(student: Detector, teacher: Detector) -> None:
    """Refuse a teacher that pads images further: its maps can be cropped, its tokens cannot."""
    ours, theirs = (size_divisor(model.data_preprocessor) for model in (student, teacher))
    if ours % theirs:
        raise ConfigError(
            f'model.student.data_preprocessor.pad_size_divisor: must be a multiple of {theirs}, that of the '
            f'teacher whose encoder is compared, got {ours}; set it to {math.lcm(ours, theirs)}'
        )


def _rows(level: Tensor) -> Tensor:
    return level.permute(0, 2, 3, 1).flatten(0, 2)
