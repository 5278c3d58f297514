"""What the encoder of a detection transformer makes of an image."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import TASK_UTILS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps, get_box_tensor
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..errors import ConfigError
from ..families.transformer import is_transformer, num_queries
from ..recorder import Recorder, Source
from .base import Alignment, Pair, Step
from .features import common_levels, levels_of
from .queries import HEAD, uses_softmax

FEATURES = Source('', method='extract_feat')
QUERIES = Source('bbox_head', capture='input', index=0)


@TASK_UTILS.register_module()
class EncoderMemoryAlignment(Alignment):
    """Pairs a transformer's encoder output with the other model's, place by place.

    The tokens of ``encoder`` are laid out as the maps they were made from, and maps of the same size
    are compared (as :class:`FeatureAlignment` does), those of padding left out. So an encoder of one
    level (DETR) meets one of four (Deformable DETR), and the other model may also be a convolutional
    detector whose recorded output is maps.
    """

    def __init__(self) -> None:
        self.is_transformer = dict(student=True, teacher=True)

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        for owner, model in (('student', student), ('teacher', teacher)):
            self.is_transformer[owner] = is_transformer(model)
        if options.get('cached'):
            raise ConfigError(
                "what an encoder gives cannot be kept in a cache; use align=dict(type='FeatureAlignment') on "
                'backbone or neck'
            )
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
            connector='LinearConnector',
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
            owner: Whose it is.
        """
        if not isinstance(value, Tensor) or value.dim() != 3 or not self.is_transformer[owner]:
            return levels_of(value, owner)
        sizes = [tuple(level.shape[-2:]) for level in record[FEATURES]]
        counts = [height * width for height, width in sizes]
        if sum(counts) != value.shape[1]:
            sizes, counts = sizes[-1:], counts[-1:]  # DETR's encoder reads the last level alone
        if sum(counts) != value.shape[1]:
            raise ConfigError(
                f"the {owner}'s recorded output has {value.shape[1]} tokens, but its maps have "
                f"{sum(counts)} places; record 'encoder'"
            )
        tokens = value.transpose(1, 2).split(counts, -1)
        return [level.unflatten(-1, size) for level, size in zip(tokens, sizes, strict=True)]

    def weight(self, level: Tensor, step: Step) -> Tensor | None:
        """How much each place of the teacher's map counts, shape (N, H, W); None for all alike."""
        return _inside(step.data_samples, level)


@TASK_UTILS.register_module()
class QueryWeightedFeatureAlignment(EncoderMemoryAlignment):
    r"""Pairs feature maps and weights each place by what the teacher's queries look at.

    The target-aware feature loss of DETRDistill (Chang et al., ICCV 2023, arXiv 2211.10156),
    to be used with ``MSE``. Place :math:`x` of the teacher's map :math:`F` counts

    .. math:: \sum_i c_i^\gamma u_i^{1-\gamma} \max(0, \cos(F_x, q_i))^2

    for the teacher's queries :math:`q_i` of the last decoder layer, :math:`c_i` the probability of
    its likeliest shared class, :math:`u_i` its box's overlap (IoU) with the labelled object it covers
    best. Differences to the paper: the sum over places is divided by these weights' sum rather than by
    their number, so the loss does not fall as the teacher grows unsure; and :math:`u_i` needs no
    matching.

    Args:
        gamma: Share of the confidence in a query's quality. 1 needs no labels.
    """

    needs_class_map = True

    def __init__(self, gamma: float = 0.5) -> None:
        super().__init__()
        if not 0 <= gamma <= 1:
            raise ConfigError(f'align.gamma={gamma} lies not in [0, 1]')
        self.gamma = gamma

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        if not self.is_transformer['teacher']:
            raise ConfigError(
                f"{type(self).__name__} asks the teacher's queries; the teacher, a "
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
        inside = _inside(step.data_samples, level)
        return weight if inside is None else weight * inside

    def quality(self, step: Step) -> Tensor:
        """How good each of the teacher's queries is, shape (N, queries), in [0, 1]."""
        scores, boxes = (value[-1].float() for value in step.teacher_record[HEAD])
        softmax = uses_softmax(step.teacher)
        scores = step.class_map.teacher_logits(scores, softmax)
        probability = scores.softmax(-1)[..., :-1] if softmax else scores.sigmoid()
        confidence = probability.amax(-1)
        if self.gamma == 1:
            return confidence
        labelled = []
        for sample in step.data_samples:
            height, width = sample.img_shape[:2]
            found = get_box_tensor(sample.gt_instances.bboxes).to(boxes)
            labelled.append(found / found.new_tensor([width, height, width, height]))
        # One empty box more, so that an image without objects has a best overlap too: none.
        labelled = F.pad(pad_sequence(labelled, batch_first=True), (0, 0, 0, 1))
        overlap = bbox_overlaps(bbox_cxcywh_to_xyxy(boxes), labelled).amax(-1)
        return confidence**self.gamma * overlap ** (1 - self.gamma)


def _rows(level: Tensor) -> Tensor:
    return level.permute(0, 2, 3, 1).flatten(0, 2)


def _inside(samples: SampleList, level: Tensor) -> Tensor | None:
    """1 for places of a map (N, C, H, W) that show the image, 0 for padding; None where none pads."""
    height, width = level.shape[-2:]
    sizes = [sample.metainfo['img_shape'][:2] for sample in samples]
    padded = [
        sample.metainfo.get('batch_input_shape', size)
        for sample, size in zip(samples, sizes, strict=True)
    ]
    if all(tuple(size) == tuple(whole) for size, whole in zip(sizes, padded, strict=True)):
        return None
    # The pixel a place is taken from, as mmdet does when it masks the encoder's tokens.
    inside = torch.zeros(len(samples), height, width)
    for mask, size, whole in zip(inside, sizes, padded, strict=True):
        rows = torch.arange(height) * whole[0] // height < size[0]
        columns = torch.arange(width) * whole[1] // width < size[1]
        mask.copy_(rows[:, None] & columns)
    return inside.to(level.device, non_blocking=True)
