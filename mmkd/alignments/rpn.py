"""Alignments of RPN heads: outputs at the same anchors."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.registry import TASK_UTILS
from torch import Tensor

from ..errors import ConfigError
from ..families.class_scores import class_probabilities, uses_softmax
from ..families.dense_heads import dense_head
from ..recorder import Source
from ..types import Detector
from .base import (
    Alignment,
    Pair,
    Step,
    common_strides,
    require_same_shape,
    stored_weights,
    strides_and_scale,
)
from .padding import valid_positions
from .roi import convert_deltas, require_delta_coder

OBJECTNESS = Source('rpn_head.rpn_cls')


class RPNAlignment(Alignment):
    """Base class of the two alignments below: pairs the anchors that both models have.

    Levels are paired by stride. At a common level, both models must have the same anchors. If the teacher
    sees larger images (``teacher.scale``), its strides and anchors are converted to the student's pixels.

    Args:
        count_padding: Whether to compare anchors on the padding of a batch. With False they have weight 0.
    """

    reduces_over_ranks = True

    def __init__(self, count_padding: bool = False) -> None:
        self.count_padding = count_padding
        self.levels: list[tuple[int, int]] = []
        self.cached = False

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Find the common levels and check that their anchors agree; see :meth:`Alignment.check`."""
        generators = []
        for owner, model in (('student', student), ('teacher', teacher)):
            generator = getattr(getattr(model, 'rpn_head', None), 'prior_generator', None)
            if generator is None or not hasattr(generator, 'base_anchors'):
                raise ConfigError(
                    f'align: {type(self).__name__} needs RPN heads with anchors, but the {owner}, a '
                    f'{type(model).__name__}, has none; compare features'
                )
            dense_head(model.rpn_head)  # raises an error for unsupported heads
            generators.append(generator)
        self.cached = options.get('cached', False)
        ours, theirs = generators
        scale = options.get('scale', 1.0)
        self.levels = common_strides(ours, theirs, scale)
        if not self.levels:
            raise ConfigError(
                f'align: the RPN heads have no common level: {strides_and_scale(ours, theirs, scale)}'
            )
        for index, other in self.levels:
            anchors, wanted = ours.base_anchors[index], theirs.base_anchors[other] / scale
            if anchors.shape != wanted.shape or not torch.allclose(anchors, wanted):
                raise ConfigError(
                    f'align: both RPN heads must have the same anchors at stride {ours.strides[index]}, got '
                    f'{anchors.tolist()} (student) and {wanted.tolist()} (teacher); configure the same '
                    f'anchor_generator'
                )

    def flatten(self, value: Any, width: int, student: bool) -> list[Tensor]:
        """Reshape the outputs of the common levels to one row per anchor.

        Args:
            value: One map per level, shape (N, anchors * width, H, W).
            width: Number of values per anchor.
            student: Whether the outputs are the student's.

        Returns:
            One tensor per common level, shape (N, H, W, anchors, width).
        """
        levels = value if isinstance(value, list) else [value]
        rows = []
        for pair in self.levels:
            level = levels[pair[0 if student else 1]]
            level = level.permute(0, 2, 3, 1)
            rows.append(level.reshape(*level.shape[:3], -1, width).float())
        return rows

    def pair(self, student: Any, teacher: Any, step: Step, width: int) -> Pair:
        """Pair the outputs at the anchors of all common levels, shape (anchors, width) each."""
        ours, theirs = self.flatten(student, width, True), self.flatten(teacher, width, False)
        for (index, _), level, other in zip(self.levels, ours, theirs, strict=True):
            require_same_shape(level, other, f'RPN level {index} (N, H, W, anchors, {width})')
        return Pair(_rows(ours), _rows(theirs), self._valid(ours, step))

    def _valid(self, levels: list[Tensor], step: Step) -> Tensor | None:
        """1 for anchors on the images, 0 for anchors on padding, shape (anchors,); None: no padding."""
        if self.count_padding:
            return None
        valid = [
            valid_positions(step.data_samples, tuple(level.shape[1:3]), level.device)
            for level in levels
        ]
        if all(mask is None for mask in valid):
            return None
        counts = [level.new_ones(level.shape[:4]) for level in levels]
        return torch.cat(
            [
                (count if mask is None else count * mask[..., None]).flatten()
                for count, mask in zip(counts, valid, strict=True)
            ]
        )


@TASK_UTILS.register_module()
class RPNClassAlignment(RPNAlignment):
    """Pairs objectness scores before the activation, one row per anchor.

    A row has one score for a sigmoid head, and two (object, background) for a softmax head.

    Args:
        count_padding: See :class:`RPNAlignment`.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='RPNClassAlignment'))
        >>> align.default_module
        'rpn_head.rpn_cls'
    """

    default_module = 'rpn_head.rpn_cls'

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check as :class:`RPNAlignment` does, and that both heads have the same scores per anchor."""
        super().check(student, teacher, options)
        ours, theirs = student.rpn_head.cls_out_channels, teacher.rpn_head.cls_out_channels
        if ours != theirs:
            raise ConfigError(
                f'align: both RPN heads must have the same number of scores per anchor, got {ours} (student) '
                f'and {theirs} (teacher); set loss_cls.use_sigmoid to the same value'
            )
        self.activation = 'softmax' if uses_softmax(student.rpn_head) else 'sigmoid'

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair objectness scores, shape (anchors, scores); see :meth:`Alignment.__call__`."""
        return [self.pair(student, teacher, step, step.student.rpn_head.cls_out_channels)]


@TASK_UTILS.register_module()
class RPNBoxAlignment(RPNAlignment):
    """Pairs anchor deltas in the student's normalisation, one row of four deltas per anchor.

    Args:
        confidence: Whether to weight each anchor by the teacher's probability of an object. Most anchors
            have no object, and their deltas have no meaning.
        count_padding: See :class:`RPNAlignment`.

    Examples:
        >>> from mmdet.registry import TASK_UTILS
        >>> import mmkd
        >>> align = TASK_UTILS.build(dict(type='RPNBoxAlignment', confidence=True))
        >>> align.default_module, [str(source) for source in align.teacher_sources]
        ('rpn_head.rpn_reg', ['rpn_head.rpn_cls'])
    """

    default_module = 'rpn_head.rpn_reg'

    def __init__(self, confidence: bool = True, count_padding: bool = False) -> None:
        super().__init__(count_padding)
        self.confidence = confidence

    @property
    def teacher_sources(self) -> list[Source]:
        """The objectness scores, if the anchors are weighted by confidence or read from a cache."""
        return [OBJECTNESS] if self.confidence or self.cached else []

    def check(self, student: Detector, teacher: Detector, options: dict[str, Any]) -> None:
        """Check as :class:`RPNAlignment` does, and that both box coders use deltas."""
        super().check(student, teacher, options)
        for owner, model in (('student', student), ('teacher', teacher)):
            require_delta_coder(model.rpn_head.bbox_coder, owner, todo='compare features')

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        """Pair deltas in the student's normalisation, shape (anchors, 4); see :meth:`Alignment.__call__`."""
        pair = self.pair(student, teacher, step, 4)
        coders = (step.teacher.rpn_head.bbox_coder, step.student.rpn_head.bbox_coder)
        pair.teacher = convert_deltas(pair.teacher, *coders)
        if self.confidence:
            confidence = self._objectness(step)
            pair.weight = confidence if pair.weight is None else confidence * pair.weight
        masks = step.stored_masks(self.teacher)
        if masks is not None:
            stored = _rows(self.flatten(masks, 1, False))[:, 0]
            pair.weight, pair.total = stored_weights(pair.weight, stored)
        return [pair]

    def _objectness(self, step: Step) -> Tensor:
        """The teacher's probability of an object, shape (anchors,)."""
        head = step.teacher.rpn_head
        scores = _rows(self.flatten(step.teacher_record[OBJECTNESS], head.cls_out_channels, False))
        # mmdet's softmax RPN puts the object first and the background last.
        return class_probabilities(scores, uses_softmax(head))[:, 0]


def _rows(levels: list[Tensor]) -> Tensor:
    """Concatenate levels of shape (N, H, W, anchors, width) to rows of shape (anchors, width)."""
    return torch.cat([level.flatten(0, 3) for level in levels])
