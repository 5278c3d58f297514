"""What several teachers say together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import Pair, require_same_shape
from .class_map import ClassMap


def mean_over_teachers(
    pairs: Sequence[list[Pair]], shares: Sequence[float], activation: str | None
) -> list[Pair]:
    """One pair in place of one for each teacher, with the weighted mean of what they say.

    Class scores become those that give the mean of the teachers' probabilities (at temperature 1), as
    in an ensemble (Hinton et al. 2015, arXiv 1503.02531, sec. 1, where soft targets are the mean of
    an ensemble's); other values the mean itself. So do weights and scales.

    Args:
        pairs: Of each teacher, the same levels in the same order, with the same rows of the student.
        shares: Of each teacher, adding up to 1.
        activation: Of the scores, or None for other values.

    Raises:
        ConfigError: The teachers' values differ in number or shape.
    """
    if len({len(each) for each in pairs}) != 1:
        raise ConfigError(
            f'teacher_name: the teachers have {" and ".join(str(len(each)) for each in pairs)} levels in '
            f'common with the student; choose the same with align.levels'
        )
    return [_mean(list(same), shares, activation) for same in zip(*pairs, strict=True)]


def _mean(pairs: list[Pair], shares: Sequence[float], activation: str | None) -> Pair:
    first = pairs[0]
    for other in pairs[1:]:
        require_same_shape(first.teacher, other.teacher, 'teacher_name: the teachers')
    teacher = _mean_scores([pair.teacher for pair in pairs], shares, activation)
    weight = None
    if any(pair.weight is not None for pair in pairs):
        ones = first.student.new_ones(len(first.student), dtype=torch.float)
        weights = [ones if pair.weight is None else pair.weight for pair in pairs]
        weight = sum(share * each for share, each in zip(shares, weights, strict=True))
    scale = sum(share * pair.scale for share, pair in zip(shares, pairs, strict=True))
    return Pair(first.student, teacher, weight, first.target, scale)


def _mean_scores(values: list[Tensor], shares: Sequence[float], activation: str | None) -> Tensor:
    stacked = torch.stack([value.float() for value in values])
    share = stacked.new_tensor(shares).reshape(-1, *[1] * (stacked.dim() - 1))
    if activation == 'softmax':
        return (stacked.log_softmax(-1) + share.log()).logsumexp(0)
    if activation == 'sigmoid':
        yes, no = (
            (torch.nn.functional.logsigmoid(side) + share.log()).logsumexp(0)
            for side in (stacked, -stacked)
        )
        return yes - no
    return (stacked * share).sum(0)


def require_same_classes(maps: Sequence[ClassMap]) -> None:
    """Refuse teachers that do not know the same classes of the student."""
    for other in maps[1:]:
        if other.student_index != maps[0].student_index:
            raise ConfigError(
                'teacher_name: the teachers know different classes of the student; write an entry for each'
            )
