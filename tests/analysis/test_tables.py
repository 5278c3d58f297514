"""Means, shares and Markdown."""

from __future__ import annotations

import math

import pytest

from mmkd.analysis.tables import gap_closed, interval, markdown_table, with_error


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


def test_columns_line_up():
    assert markdown_table([['', 'mAP'], ['teacher', '31.1'], ['me', '4.0']]).splitlines() == [
        '|         |  mAP |',
        '|---------|-----:|',
        '| teacher | 31.1 |',
        '| me      |  4.0 |',
    ]
