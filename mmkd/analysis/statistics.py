"""Means, differences and significance tests for training runs with several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """The difference of two means.

    Attributes:
        mean: First mean minus second mean.
        half: Half width of its 95 % confidence interval; nan if one side has a single run.
        p: Two-sided p-value of the hypothesis that both means are equal; nan if one side has a single run.
    """

    mean: float
    half: float
    p: float


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval (Student's t); nan for one value."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return float(array.mean()), float('nan')
    error = array.std(ddof=1) / len(array) ** 0.5
    return float(array.mean()), float(stats.t.ppf(0.975, len(array) - 1) * error)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The difference of the means of two groups of independent runs (Welch's t-test).

    Runs with the same seed are not treated as pairs: with different losses, the weights differ after a few
    steps, so the seed does not correlate the results. A paired test could give intervals that are too narrow
    by chance.
    """
    mean = float(np.mean(ours) - np.mean(theirs))
    if min(len(ours), len(theirs)) < 2:
        return Difference(mean, float('nan'), float('nan'))
    if np.var(ours) == np.var(theirs) == 0:  # the t-test is undefined
        return Difference(mean, 0.0, float(mean == 0))
    found = stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = found.confidence_interval(0.95)
    return Difference(mean, float(high - low) / 2, float(found.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for several comparisons.

    With a limit of 0.05, one in twenty tables contains a false positive. Source: Holm, A Simple Sequentially
    Rejective Multiple Test Procedure, Scand. J. Statist. 6 (1979).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def prediction_interval(values: Sequence[float], share: float = 0.99) -> tuple[float, float]:
    """Interval that contains one more run with probability ``share`` (Student's t); nan for one value."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return float('nan'), float('nan')
    reach = stats.t.ppf((1 + share) / 2, len(array) - 1) * (1 + 1 / len(array)) ** 0.5
    half = float(reach * array.std(ddof=1))
    return float(array.mean()) - half, float(array.mean()) + half


def gap_closed(teacher: float, student: float, distilled: float) -> float | None:
    """The gain of distillation, as a fraction of the difference between teacher and student.

    Args:
        teacher: mAP of the teacher.
        student: mAP of the student trained without distillation.
        distilled: mAP of the distilled student.

    Returns:
        1 if the distilled student is as good as the teacher, negative if distillation reduced mAP,
        ``None`` if the teacher is not better than the student.
    """
    if teacher <= student:
        return None
    return (distilled - student) / (teacher - student)
