"""Feature maps of student and teacher on the same images."""

from __future__ import annotations

from typing import Any

from mmdet.registry import TASK_UTILS
from torch import Tensor

from ..errors import ConfigError
from .base import Alignment, Pair, Step, require_same_shape


@TASK_UTILS.register_module()
class FeatureAlignment(Alignment):
    """Pairs feature maps level by level, by their height and width.

    The default alignment. A single map and a tuple of maps (a neck's output) are both understood;
    levels that only one side has are left out.
    """

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        ours, theirs = _levels(student, 'student'), _levels(teacher, 'teacher')
        if len(ours) == len(theirs):
            pairs = list(zip(ours, theirs, strict=True))
        else:
            by_size = {level.shape[2:]: level for level in theirs}
            pairs = [
                (level, by_size[level.shape[2:]]) for level in ours if level.shape[2:] in by_size
            ]
        if not pairs:
            raise ConfigError(
                f'no common level: the student has maps of {_sizes(ours)}, the teacher of {_sizes(theirs)}'
            )
        for index, (level, other) in enumerate(pairs):
            hint = ''
            if level.dim() > 1 and other.dim() > 1 and level.shape[1] != other.shape[1]:
                hint = (
                    f'; channels differ: add connector=dict(type="ConvConnector", '
                    f'in_channels={level.shape[1]}, out_channels={other.shape[1]})'
                )
            require_same_shape(level, other, f'level {index}', hint)
        return [Pair(level, other) for level, other in pairs]


def _levels(value: Any, owner: str) -> list[Tensor]:
    levels = list(value) if isinstance(value, (list, tuple)) else [value]
    if not levels or not all(isinstance(level, Tensor) for level in levels):
        kinds = sorted({type(level).__name__ for level in levels})
        raise ConfigError(
            f"the {owner}'s output is {kinds}, not feature maps; record a module that gives tensors, or "
            f'choose with index='
        )
    return levels


def _sizes(levels: list[Tensor]) -> str:
    return ', '.join('x'.join(map(str, level.shape[2:])) for level in levels)
