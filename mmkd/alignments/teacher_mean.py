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
    """Return the weighted mean over teachers of their pairs.

    The mean of class scores is the score of the teachers' mean probability (at temperature 1), as in an
    ensemble: the soft targets of Hinton et al. 2015 (arXiv 1503.02531, sec. 1) are the mean over an
    ensemble. All other values, weights and divisors are averaged directly. A position of a map is valid if
    it is valid for all teachers.

    Args:
        pairs: The pairs of each teacher: the same levels in the same order, with the same student rows.
        shares: The share of each teacher, with a sum of 1.
        activation: The activation of the scores, or None for other values.

    Raises:
        ConfigError: The values of the teachers differ in number or shape.
    """
    if len({len(each) for each in pairs}) != 1:
        raise ConfigError(
            f'teacher_name: all teachers must have the same levels in common with the student, got '
            f'{" and ".join(str(len(each)) for each in pairs)} levels; select levels with align.levels'
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
    """Raise a ConfigError if the teachers share different classes with the student."""
    for other in maps[1:]:
        if other.student_index != maps[0].student_index:
            raise ConfigError(
                'teacher_name: all teachers must share the same classes with the student, but they differ; '
                'write one entry per teacher'
            )
