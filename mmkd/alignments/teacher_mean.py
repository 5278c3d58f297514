"""The mean over several teachers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import Pair, require_same_shape
from .class_map import ClassMap
from .padding import intersect_masks


def mean_over_teachers(
    pairs: Sequence[list[Pair]], shares: Sequence[float], activation: str | None
) -> list[Pair]:
    """The weighted mean of each teacher's pairs.

    Class scores become those that give the mean of the teachers' probabilities (at temperature 1), as
    in an ensemble (Hinton et al. 2015, arXiv 1503.02531, sec. 1, where soft targets are the mean of
    an ensemble's); other values become their mean. So do weights and divisors. Positions of maps count
    where they do with all teachers.

    Args:
        pairs: Per teacher, the same levels in the same order, with the same rows of the student.
        shares: Per teacher, with a sum of 1.
        activation: Activation of the scores, or None for other values.

    Raises:
        ConfigError: The teachers' values differ in number or shape.
    """
    if len({len(each) for each in pairs}) != 1:
        raise ConfigError(
            f'teacher_name: the teachers have {" and ".join(str(len(each)) for each in pairs)} levels in '
            f'common with the student; select the same ones with align.levels'
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
        shared = zip(shares, weights, strict=True)
        weight = sum((share * each for share, each in shared), torch.zeros_like(ones))
    total = None
    if any(pair.total is not None for pair in pairs):
        total = sum(share * pair.divisor for share, pair in zip(shares, pairs, strict=True))
    mask = reduce(intersect_masks, (pair.mask for pair in pairs))
    return Pair(first.student, teacher, weight, first.target, mask, total)


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
    """Refuse teachers that have different classes of the student."""
    for other in maps[1:]:
        if other.student_index != maps[0].student_index:
            raise ConfigError(
                'teacher_name: the teachers have different classes of the student; write an entry for each'
            )
