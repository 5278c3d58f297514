"""Feature maps of student and teacher on the same images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmdet.registry import TASK_UTILS
from torch import Tensor

from ..errors import ConfigError
from .base import Alignment, Pair, Step, require_same_shape


@TASK_UTILS.register_module()
class FeatureAlignment(Alignment):
    """Pairs feature maps level by level, by their height and width.

    The default alignment. A single map and a tuple of maps (a neck's output) are both understood.
    Levels that only one side has are left out: of P2 to P6 and P3 to P7, P3 to P6 are compared.

    Args:
        same_channels: Whether maps must have the same number of channels. A loss that does not
            compare them channel by channel (``AttentionTransfer``, ``RKDDistance``, ``RKDAngle``)
            needs no connector with False.
    """

    def __init__(self, same_channels: bool = True) -> None:
        self.same_channels = same_channels

    def __call__(self, student: Any, teacher: Any, step: Step) -> list[Pair]:
        pairs = common_levels(
            levels_of(student, 'student'),
            levels_of(teacher, 'teacher'),
            same_channels=self.same_channels,
        )
        return [Pair(level, other) for level, other in pairs]


def common_levels(
    ours: list[Tensor],
    theirs: list[Tensor],
    connector: str = 'ConvConnector',
    same_channels: bool = True,
) -> list[tuple[Tensor, Tensor]]:
    """Maps of student and teacher of the same size, in order.

    Args:
        ours: The student's maps, shape (N, C, H, W) each.
        theirs: The teacher's.
        connector: What a message proposes where channels differ.
        same_channels: Whether they must not.

    Raises:
        ConfigError: No level is common, or one differs in shape.
    """
    pairs = list(_of_same_size(ours, theirs))
    if not pairs:
        raise ConfigError(
            f'no common level: the student has maps of {_sizes(ours)}, the teacher of {_sizes(theirs)}'
        )
    for index, (level, other) in enumerate(pairs):
        hint = ''
        if level.dim() > 1 and other.dim() > 1 and level.shape[1] != other.shape[1]:
            hint = (
                f"; channels differ: add connector=dict(type='{connector}', "
                f'in_channels={level.shape[1]}, out_channels={other.shape[1]})'
            )
        if same_channels:
            require_same_shape(level, other, f'level {index}', hint)
        else:
            require_same_shape(level[:, :0], other[:, :0], f'level {index}')
    return pairs


def _of_same_size(ours: list[Tensor], theirs: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    start = 0  # levels stay in order: the smallest maps of small images may have the same size
    for level in ours:
        for index in range(start, len(theirs)):
            if theirs[index].shape[2:] == level.shape[2:]:
                yield level, theirs[index]
                start = index + 1
                break


def levels_of(value: Any, owner: str) -> list[Tensor]:
    """A recorded output as a list of maps.

    Raises:
        ConfigError: It is something else.
    """
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
