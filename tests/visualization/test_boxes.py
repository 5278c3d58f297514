"""Right and wrong boxes, and missed objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData

from mmkd.visualization import Boxes, match_boxes, predicted_boxes


def boxes(*rows, scores=None, ignored=None):
    """Rows are x1 y1 x2 y2 label."""
    table = np.array(rows, dtype=float).reshape(-1, 5)
    return Boxes(table[:, :4], table[:, 4].astype(int), scores, ignored)


TRUTH = boxes((0, 0, 10, 10, 0), (20, 0, 40, 20, 1))


@pytest.mark.parametrize(
    ('found', 'right', 'hit', 'f1'),
    [
        (boxes(), [], [False, False], 0),
        (boxes((0, 0, 10, 10, 0), (20, 0, 40, 20, 1)), [True, True], [True, True], 1),
        (boxes((0, 0, 10, 10, 1)), [False], [False, False], 0),  # another class
        (boxes((0, 0, 10, 4.9, 0)), [False], [False, False], 0),  # overlaps by 0.49
        (boxes((0, 0, 10, 5, 0)), [True], [True, False], 2 / 3),  # by 0.5
        # The same object twice: the second, of the lower score, is wrong.
        (boxes((0, 0, 10, 9, 0), (0, 0, 10, 10, 0)), [True, False], [True, False], 1 / 2),
    ],
)
def test_match_boxes(found, right, hit, f1):
    matches = match_boxes(found, TRUTH)
    assert matches.right.tolist() == right
    assert matches.wrong.tolist() == [not each for each in right]
    assert matches.hit.tolist() == hit
    assert matches.f1 == pytest.approx(f1)


def test_match_without_objects():
    matches = match_boxes(boxes((0, 0, 10, 10, 0)), boxes())
    assert matches.wrong.tolist() == [True] and matches.hit.tolist() == []
    assert matches.f1 == 0 and match_boxes(boxes(), boxes()).f1 == 1


def test_a_box_on_an_ignored_object_is_neither_right_nor_wrong():
    crowd = boxes((50, 0, 90, 40, 0))
    truth = boxes((0, 0, 10, 10, 0), ignored=crowd)
    on_crowd, of_other_class, half_out = (60, 0, 70, 10, 0), (60, 0, 70, 10, 1), (85, 0, 96, 10, 0)
    matches = match_boxes(boxes((0, 0, 10, 10, 0), on_crowd, of_other_class, half_out), truth)
    assert matches.right.tolist() == [True, False, False, False]
    assert matches.wrong.tolist() == [False, False, True, True]
    assert str(matches) == '1 right · 2 wrong · 0 missed'


def test_threshold_keeps_equal_scores_and_sorts():
    found = boxes(
        (0, 0, 1, 1, 0), (0, 0, 2, 2, 1), (0, 0, 3, 3, 2), scores=np.array([0.5, 0.4, 0.9])
    )
    kept = found.above(0.5)
    assert kept.labels.tolist() == [2, 0]
    assert kept.scores.tolist() == [0.9, 0.5]


def test_of_overlapping_boxes_the_first_is_kept():
    found = boxes(
        (0, 0, 10, 10, 0),
        (0, 0, 10, 9, 1),  # overlaps the first, with another class
        (0, 0, 10, 4, 2),  # within the first, but overlaps it by less than half
        (20, 20, 30, 30, 0),
        scores=np.array([0.9, 0.8, 0.7, 0.6]),
    )
    assert found.without_overlaps().scores.tolist() == [0.9, 0.7, 0.6]
    assert len(boxes(scores=np.array([])).without_overlaps()) == 0


def test_other_labels_drop_classes_without_one():
    found = boxes((0, 0, 1, 1, 5), (0, 0, 2, 2, 7), (0, 0, 3, 3, 5), scores=np.array([1, 2, 3]))
    kept = found.relabelled({5: 1, 6: 0})
    assert kept.labels.tolist() == [1, 1] and kept.scores.tolist() == [1, 3]
    assert len(found.relabelled({})) == 0


def test_boxes_of_a_sample_in_mmdets_own_type():
    sample = DetDataSample()
    sample.pred_instances = InstanceData(
        bboxes=HorizontalBoxes(torch.tensor([[1.0, 2, 3, 4]])),
        labels=torch.tensor([2]),
        scores=torch.tensor([0.5], dtype=torch.float16),
    )
    found = predicted_boxes(sample)
    assert found.boxes.tolist() == [[1, 2, 3, 4]] and found.scores.tolist() == [0.5]
