"""mmkd/alignments/query_matching.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mmkd.alignments.query_matching import assign


@pytest.mark.parametrize('columns', [5, 6])
def test_assignments_are_the_cheapest_there_are(columns):
    # One column is dear to all rows, which must not be forgotten where it may stay free.
    cost = np.random.default_rng(0).random((2, 3, 5, columns), np.float32)
    cost[..., 1] += 3
    found = assign(cost)
    rows = np.arange(5)
    for matrix, chosen in zip(cost.reshape(-1, 5, columns), found.reshape(-1, 5), strict=True):
        every = [matrix[rows, list(p)].sum() for p in itertools.permutations(range(columns), 5)]
        assert matrix[rows, chosen].sum() == pytest.approx(min(every))
    assert found.shape == (2, 3, 5)
