"""Lists of boxes are compared by label, place and score, whatever their order."""

from __future__ import annotations

import pytest
import torch
from mmengine.structures import InstanceData

from mmkd.deploy.agreement import compare


def found(*rows):
    """Each row: x1, y1, x2, y2, score, label."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return InstanceData(bboxes=values[:, :4], scores=values[:, 4], labels=values[:, 5].long())


ONE, TWO = (10.0, 20.0, 110.0, 220.0, 0.9, 1), (0.0, 5.0, 50.0, 60.0, 0.8995, 0)


@pytest.mark.parametrize(
    ('second', 'boxes', 'different'),
    [
        ([ONE, TWO], 2, 0),
        ([TWO, ONE], 2, 0),  # scores all but equal
        ([(10.005, 20.01, 110.1, 220.2, 0.8999, 1), TWO], 2, 0),
        ([(*ONE[:5], 0), TWO], 1, 2),  # another label
        ([(11.0, *ONE[1:]), TWO], 1, 2),  # another place
        ([(*ONE[:4], 0.89, 1), TWO], 1, 2),  # another score
        ([ONE], 1, 1),
        ([ONE, ONE, TWO], 2, 1),
        ([ONE, TWO, (0.0, 0.0, 9.0, 9.0, 0.0505, 2)], 2, 0),  # at the lowest score
        ([], 0, 2),
    ],
)
def test_what_agrees(second, boxes, different):
    result = compare(found(ONE, TWO), found(*second), limit=100, lowest=0.05)
    assert (result.boxes, result.different) == (boxes, different)


def test_the_last_of_a_full_list_may_be_another():
    """Of two that score the same, each list keeps one; a higher one must be in both."""
    last = (0.0, 0.0, 9.0, 9.0, 0.5, 2)
    other = (40.0, 40.0, 90.0, 90.0, 0.5, 2)
    assert compare(found(ONE, last), found(ONE, other), limit=2, lowest=0.05).different == 0
    assert compare(found(ONE, last), found(ONE, other), limit=3, lowest=0.05).different == 2
    assert compare(found(ONE, last), found(other, last), limit=2, lowest=0.05).different == 1


def test_differences_are_the_largest_and_add_up():
    near = (10.0, 20.0, 110.05, 220.0, 0.9005, 1)
    one = compare(found(ONE), found(near), limit=10, lowest=0.0)
    assert one.pixels == pytest.approx(0.05, abs=1e-5) and one.score == pytest.approx(
        5e-4, rel=0.01
    )
    both = one + compare(found(ONE), found(ONE), limit=10, lowest=0.0)
    assert (both.boxes, both.pixels) == (2, one.pixels)
