"""Means, differences and their chance: what training runs of several seeds show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """Of two means.

    Attributes:
        mean: Ours less theirs.
        half: Half width of its 95 % confidence interval; nan where one side is a single run.
        p: Two-sided, that both means are the same; nan likewise.
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
    """Of runs that share nothing but their settings (Welch's t-test).

    Runs of one seed are no pairs: after the first steps two losses lead to other weights, and the seed
    decides neither's result. Pairs would find intervals that are too narrow by chance.
    """
    mean = float(np.mean(ours) - np.mean(theirs))
    if min(len(ours), len(theirs)) < 2:
        return Difference(mean, float('nan'), float('nan'))
    if np.var(ours) == np.var(theirs) == 0:  # no scatter to compare with
        return Difference(mean, 0.0, float(mean == 0))
    found = stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = found.confidence_interval(0.95)
    return Difference(mean, float(high - low) / 2, float(found.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, such that below 0.05 one in twenty tables has a wrong one.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Statist. 6 (1979).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def prediction_interval(values: Sequence[float], share: float = 0.99) -> tuple[float, float]:
    """Where one more run falls with a probability of ``share`` (Student's t); nan for one value."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return float('nan'), float('nan')
    reach = stats.t.ppf((1 + share) / 2, len(array) - 1) * (1 + 1 / len(array)) ** 0.5
    half = float(reach * array.std(ddof=1))
    return float(array.mean()) - half, float(array.mean()) + half


def gap_closed(teacher: float, student: float, distilled: float) -> float | None:
    """The share of what the student lacks to the teacher that distillation gave it.

    Args:
        teacher: Its mAP.
        student: That of the student trained alone.
        distilled: That of the distilled student.

    Returns:
        1 when the distilled student is as good as the teacher, negative when it got worse, and
        ``None`` when the teacher is no better than the student.
    """
    if teacher <= student:
        return None
    return (distilled - student) / (teacher - student)
