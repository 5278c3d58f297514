"""Intervals, tests and shares, against scipy's own and figures from books."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from mmkd.analysis.statistics import difference, gap_closed, holm, interval, prediction_interval
from mmkd.analysis.tables import with_error


@pytest.mark.parametrize(
    ('teacher', 'student', 'distilled', 'share'),
    [(0.5, 0.3, 0.4, 0.5), (0.5, 0.3, 0.5, 1.0), (0.5, 0.3, 0.2, -0.5), (0.3, 0.3, 0.4, None)],
)
def test_gap_closed(teacher, student, distilled, share):
    assert gap_closed(teacher, student, distilled) == (share and pytest.approx(share))


def test_interval_of_three_values():
    mean, half = interval([1.0, 2.0, 3.0])
    # t of 2 degrees of freedom at 97.5 % is 4.302653; the deviation is 1.
    assert (mean, half) == pytest.approx((2.0, 4.302653 / math.sqrt(3)))
    assert with_error(mean, half) == '2.0 ± 2.5'
    assert with_error(*interval([4.0]), signed=True) == '+4.0'


def test_a_difference_is_of_independent_runs():
    """Not of pairs: in another order of the seeds it is the same."""
    ours, theirs = [21.0, 22.5, 20.1, 23.0], [17.0, 18.4, 15.2]
    found = difference(ours, theirs)
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    assert found.mean == pytest.approx(21.65 - 16.8666, abs=1e-3)
    assert found.p == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert difference(ours[::-1], theirs) == found


def test_single_runs_have_no_interval_and_equal_runs_no_chance():
    for ours, theirs in (([20.0], [17.0, 18.0]), ([20.0, 21.0], [17.0])):
        found = difference(ours, theirs)
        assert math.isnan(found.half) and math.isnan(found.p)
    assert difference([20.0], [17.0, 18.0]).mean == 2.5
    assert (difference([0.0] * 3, [0.0] * 3).p, difference([1.0] * 3, [0.0] * 3).p) == (1.0, 0.0)


def test_holm():
    # Holm 1979: 0.01 x 4, 0.015 x 3, 0.02 x 2; then never less than the one before.
    assert holm([0.02, 0.01, 0.9, 0.015]) == pytest.approx([0.045, 0.04, 0.9, 0.045])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_one_more_run_falls_into_the_prediction_interval_as_often_as_it_says():
    draw, inside = random.Random(0), 0
    for _ in range(2000):
        *seen, new = (draw.gauss(17, 2) for _ in range(9))
        low, high = prediction_interval(seen, 0.9)
        inside += low <= new <= high
    assert 0.88 < inside / 2000 < 0.92
    assert math.isnan(prediction_interval([1.0])[0])
