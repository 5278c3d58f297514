"""Outputs of dense heads at the same places."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.registry import TASK_UTILS
from torch import Tensor, nn

from ..errors import ConfigError
from ..families.single_stage import SingleStage
from ..recorder import Source
from .base import Alignment, Pair, Step, require_same_shape

# Class scores of each level first, box outputs second, whatever else the head gives after them.
HEAD = Source('bbox_head')


class DenseAlignment(Alignment):
    """Base of the two alignments below: priors (anchors or points) that both heads have.

    Levels are paired by stride; at a common level the priors must be the same.

    Args:
        confidence: Weight each prior by the teacher's probability of its likeliest shared class. Most
            priors show none; with False all count alike.
        num_priors: Compare only so many priors a batch, those of which the teacher is surest. None for
            all.
    """

    needs_class_map = True

    def __init__(self, confidence: bool = True, num_priors: int | None = None) -> None:
        if num_priors is not None and num_priors < 1:
            raise ConfigError(f'align.num_priors={num_priors} must be at least 1')
        self.confidence = confidence
        self.num_priors = num_priors
        self.levels: list[tuple[int, int]] = []

    @property
    def teacher_sources(self) -> list[Source]:
        return [HEAD]

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        generators = []
        for owner, model in (('student', student), ('teacher', teacher)):
            if not SingleStage.covers(model) or not hasattr(model.bbox_head, 'cls_out_channels'):
                raise ConfigError(
                    f'{type(self).__name__} pairs dense heads; the {owner}, a '
                    f'{type(model).__name__}, has none that gives a score a class at each prior'
                )
            generators.append(model.bbox_head.prior_generator)
        ours, theirs = (_strides(generator) for generator in generators)
        self.levels = [
            (i, theirs.index(stride)) for i, stride in enumerate(ours) if stride in theirs
        ]
        if not self.levels:
            raise ConfigError(
                f'the heads have no common level: strides {ours} (student) and {theirs} (teacher)'
            )
        for index, other in self.levels:
            self._require_same_priors(*generators, index, other)
        softmax = [uses_softmax(model) for model in (student, teacher)]
        if softmax[0] != softmax[1]:
            raise ConfigError(
                'one head uses a softmax and the other sigmoids: their scores have no common meaning'
            )

    @staticmethod
    def _require_same_priors(student: Any, teacher: Any, index: int, other: int) -> None:
        counts = [g.num_base_priors[i] for g, i in ((student, index), (teacher, other))]
        anchors = [getattr(g, 'base_anchors', None) for g in (student, teacher)]
        same = counts[0] == counts[1] and (anchors[0] is None) == (anchors[1] is None)
        if same and anchors[0] is not None:
            same = torch.allclose(anchors[0][index], anchors[1][other])
        elif same:
            same = getattr(student, 'offset', None) == getattr(teacher, 'offset', None)
        if not same:
            raise ConfigError(
                f'at stride {_strides(student)[index]} the heads have different priors '
                f'({counts[0]} a place of {type(student).__name__}, the teacher {counts[1]} of '
                f'{type(teacher).__name__}); give both the same, or compare features'
            )

    def rows(self, value: Any, which: int, owner: str, model: nn.Module, width: int) -> Tensor:
        """An output of the head at the common levels, a row a prior.

        Args:
            value: The recorded output: the head's, or one of its parts, level by level.
            which: The part of the head's output that is meant.
            owner: Whose it is.
            model: Its model.
            width: Numbers a prior.

        Returns:
            Shape (priors of all images and levels, width).
        """
        if isinstance(value, (tuple, list)) and value and isinstance(value[0], (tuple, list)):
            value = value[which]
        strides = _strides(model.bbox_head.prior_generator)
        fits = isinstance(value, (tuple, list)) and len(value) == len(strides)
        if not fits or not all(isinstance(v, Tensor) and v.dim() == 4 for v in value):
            raise ConfigError(
                f"the {owner}'s recorded output is not one map a level of its {len(strides)}; record "
                f'bbox_head'
            )
        rows = []
        for pair in self.levels:
            level = value[pair[0 if owner == 'student' else 1]].permute(0, 2, 3, 1)
            if level.shape[-1] % width:
                raise ConfigError(
                    f"the {owner}'s recorded output has {level.shape[-1]} channels, no multiple of "
                    f'{width}; record bbox_head'
                )
            rows.append(level.reshape(-1, width))
        return torch.cat(rows).float()

    def judge(self, step: Step) -> tuple[Tensor | None, Tensor | None]:
        """How much each prior counts, shape (priors,), and the indices of those compared.

        None for all alike, and None for all.
        """
        if not self.confidence and self.num_priors is None:
            return None, None
        key = ('dense confidence', tuple(self.levels))
        if key not in step.memo:
            head = step.teacher.bbox_head
            scores = self.rows(
                step.teacher_record[HEAD], 0, 'teacher', step.teacher, head.cls_out_channels
            )
            softmax = uses_softmax(step.teacher)
            scores = step.class_map.teacher_logits(scores, softmax)
            probability = scores.softmax(-1)[..., :-1] if softmax else scores.sigmoid()
            step.memo[key] = probability.amax(-1)
        confidence = step.memo[key]
        chosen = None
        if self.num_priors is not None and self.num_priors < len(confidence):
            chosen = confidence.topk(self.num_priors).indices
        return confidence if self.confidence else None, chosen

    def pair(self, student: Tensor, teacher: Tensor, step: Step, of_each: int = 1) -> Pair:
        """The priors that are compared; ``of_each`` rows belong to one prior."""
        require_same_shape(student, teacher, 'priors')
        weight, chosen = self.judge(step)
        if chosen is not None:
            student, teacher = (
                side.reshape(-1, of_each, side.shape[-1])[chosen].flatten(0, 1)
                for side in (student, teacher)
            )
            weight = None if weight is None else weight[chosen]
        if weight is not None and of_each > 1:
            weight = weight.repeat_interleave(of_each)
        return Pair(student, teacher, weight)


@TASK_UTILS.register_module()
class DenseClassAlignment(DenseAlignment):
    """Pairs the class scores of two dense heads, one row a prior.

    Scores of objectness or centredness, where a head has them, are not part of it.

    Args:
        confidence: As :class:`DenseAlignment`.
        num_priors: As :class:`DenseAlignment`.
    """

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        self.activation = 'softmax' if uses_softmax(student) else 'sigmoid'

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        softmax = uses_softmax(step.student)
        ours = self.rows(
            student, 0, 'student', step.student, step.student.bbox_head.cls_out_channels
        )
        theirs = self.rows(
            teacher, 0, 'teacher', step.teacher, step.teacher.bbox_head.cls_out_channels
        )
        ours = step.class_map.student_logits(ours, softmax)
        return [self.pair(ours, step.class_map.teacher_logits(theirs, softmax), step)]


@TASK_UTILS.register_module()
class DenseDistributionAlignment(DenseAlignment):
    """Pairs the distributions of box edges that generalised focal heads give, one row an edge.

    Zheng et al.: Localization Distillation for Dense Object Detection, CVPR 2022 (arXiv 2102.12252):
    with ``KLDivergence`` at a high temperature. The paper compares where labels say that an object is
    near, here the teacher's confidence says so.

    Args:
        confidence: As :class:`DenseAlignment`.
        num_priors: As :class:`DenseAlignment`.
    """

    activation = 'softmax'

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        bins = [getattr(model.bbox_head, 'reg_max', None) for model in (student, teacher)]
        if None in bins or bins[0] != bins[1]:
            raise ConfigError(
                f'{type(self).__name__} pairs heads that give each edge of a box a distribution '
                f'(GFLHead) over equally many numbers; reg_max is {bins[0]} (student) and {bins[1]} '
                f'(teacher)'
            )

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        bins = step.student.bbox_head.reg_max + 1
        ours, theirs = (
            self.rows(value, 1, owner, model, 4 * bins).reshape(-1, bins)
            for value, owner, model in (
                (student, 'student', step.student),
                (teacher, 'teacher', step.teacher),
            )
        )
        return [self.pair(ours, theirs, step, of_each=4)]


def uses_softmax(model: nn.Module) -> bool:
    """Whether a dense head's classifier is a softmax with background."""
    return not getattr(model.bbox_head, 'use_sigmoid_cls', True)


def _strides(generator: Any) -> list[tuple[int, int]]:
    return [(s, s) if isinstance(s, int) else tuple(s) for s in generator.strides]
