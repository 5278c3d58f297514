"""RPN outputs at the same anchors."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.registry import TASK_UTILS
from torch import Tensor, nn

from ..errors import ConfigError
from ..recorder import Source
from .base import (
    Alignment,
    Pair,
    Step,
    common_strides,
    count_known,
    require_same_shape,
    strides_and_scale,
)
from .roi import convert_deltas, require_delta_coder

OBJECTNESS = Source('rpn_head.rpn_cls')


class RPNAlignment(Alignment):
    """Base of the two alignments below: anchors that both models have.

    Levels are paired by stride; at a common level the anchors must be the same. Strides and anchors of a
    teacher that sees larger images (``teacher.scale``) are measured in the student's pixels.
    """

    reduces_over_ranks = True

    def __init__(self) -> None:
        self.levels: list[tuple[int, int]] = []
        self.cached = False

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        generators = []
        for owner, model in (('student', student), ('teacher', teacher)):
            generator = getattr(getattr(model, 'rpn_head', None), 'prior_generator', None)
            if generator is None or not hasattr(generator, 'base_anchors'):
                raise ConfigError(
                    f'{type(self).__name__} pairs RPN heads with anchors; the {owner}, a '
                    f'{type(model).__name__}, has none'
                )
            generators.append(generator)
        self.cached = options.get('cached', False)
        ours, theirs = generators
        scale = options.get('scale', 1.0)
        self.levels = common_strides(ours, theirs, scale)
        if not self.levels:
            raise ConfigError(
                f'RPN heads have no common level: {strides_and_scale(ours, theirs, scale)}'
            )
        for index, other in self.levels:
            anchors, wanted = ours.base_anchors[index], theirs.base_anchors[other] / scale
            if anchors.shape != wanted.shape or not torch.allclose(anchors, wanted):
                raise ConfigError(
                    f'RPN anchors at stride {ours.strides[index]} differ: student {anchors.tolist()}, '
                    f'teacher {wanted.tolist()}; give both the same anchor_generator'
                )

    def flatten(self, value: Any, width: int, student: bool) -> list[Tensor]:
        """Outputs of the common levels as rows of anchors.

        Args:
            value: Per level, shape (N, anchors * width, H, W).
            width: Numbers an anchor.
            student: Whether these are the student's.

        Returns:
            Per common level, shape (N, H, W, anchors, width).
        """
        levels = value if isinstance(value, list) else [value]
        rows = []
        for pair in self.levels:
            level = levels[pair[0 if student else 1]]
            level = level.permute(0, 2, 3, 1)
            rows.append(level.reshape(*level.shape[:3], -1, width).float())
        return rows

    def rows(self, student: Any, teacher: Any, width: int) -> tuple[Tensor, Tensor]:
        """Both outputs at the same anchors of all common levels, shape (anchors, width) each."""
        ours, theirs = self.flatten(student, width, True), self.flatten(teacher, width, False)
        for (index, _), level, other in zip(self.levels, ours, theirs, strict=True):
            require_same_shape(level, other, f'RPN level {index} (N, H, W, anchors, {width})')
        return (torch.cat([level.flatten(0, 3) for level in levels]) for levels in (ours, theirs))


@TASK_UTILS.register_module()
class RPNClassAlignment(RPNAlignment):
    """Pairs objectness scores, one row an anchor, before the activation.

    Rows have one number with a sigmoid head, two (object, background) with a softmax head.
    """

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        ours, theirs = student.rpn_head.cls_out_channels, teacher.rpn_head.cls_out_channels
        if ours != theirs:
            raise ConfigError(
                f'RPN heads give {ours} (student) and {theirs} (teacher) scores an anchor; set '
                f'loss_cls.use_sigmoid alike'
            )
        self.activation = 'sigmoid' if student.rpn_head.use_sigmoid_cls else 'softmax'

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        return [Pair(*self.rows(student, teacher, step.student.rpn_head.cls_out_channels))]


@TASK_UTILS.register_module()
class RPNBoxAlignment(RPNAlignment):
    """Pairs anchor deltas, one row of four an anchor, in the student's normalisation.

    Args:
        confidence: Weight each anchor by the teacher's probability that it holds an object. Most
            anchors hold none, and there the deltas mean nothing.
    """

    def __init__(self, confidence: bool = True) -> None:
        super().__init__()
        self.confidence = confidence

    @property
    def teacher_sources(self) -> list[Source]:
        return [OBJECTNESS] if self.confidence or self.cached else []

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        super().check(student, teacher, options)
        for owner, model in (('student', student), ('teacher', teacher)):
            require_delta_coder(model.rpn_head.bbox_coder, owner)

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        ours, theirs = self.rows(student, teacher, 4)
        theirs = convert_deltas(
            theirs, step.teacher.rpn_head.bbox_coder, step.student.rpn_head.bbox_coder
        )
        weight = None
        if self.confidence:
            head = step.teacher.rpn_head
            scores = self.flatten(step.teacher_record[OBJECTNESS], head.cls_out_channels, False)
            scores = torch.cat([level.flatten(0, 3) for level in scores])
            # mmdet's softmax RPN puts the object first and the background last.
            weight = (scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1))[:, 0]
        known = step.known(self.teacher)
        if known is None:
            return [Pair(ours, theirs, weight)]
        known = torch.cat([level.flatten() for level in self.flatten(known, 1, False)])
        weight, scale = count_known(weight, known)
        return [Pair(ours, theirs, weight, scale=scale)]
