"""mmkd/alignments/query_matching.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps

from mmkd.alignments.query_matching import assign, generalized_iou


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


@pytest.mark.parametrize('scale', [1, 300])
def test_generalized_iou_is_mmdets(scale):
    boxes, others = torch.rand(2, 5, 4) * scale, torch.rand(2, 7, 4) * scale
    others[:, 0] = boxes[:, 0]  # the same box
    others[:, 1, :2] += 5 * scale  # far away
    others[:, 2, 2:] = 0  # no area
    boxes, others = bbox_cxcywh_to_xyxy(boxes), bbox_cxcywh_to_xyxy(others)
    expected = bbox_overlaps(boxes, others, mode='giou')
    torch.testing.assert_close(generalized_iou(boxes, others), expected)
    torch.testing.assert_close(generalized_iou(boxes[0], others[0]), expected[0])
