"""Compare the boxes of two runs of a detector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmengine.structures import InstanceData

#: Maximum difference of scores.
SCORE_TOLERANCE = 1e-3
#: Maximum relative difference of coordinates, and maximum difference in px of coordinates near 0.
RELATIVE_TOLERANCE, PIXEL_TOLERANCE = 1e-3, 1e-2


@dataclass(frozen=True)
class Agreement:
    """The result of comparing two lists of boxes; results are added with ``+``.

    Attributes:
        boxes: Number of boxes with the same label, position and score in both lists.
        different: Number of boxes in only one list, except those near the score cutoff.
        pixels: Largest difference of a coordinate, px.
        score: Largest difference of a score.
    """

    boxes: int
    different: int
    pixels: float
    score: float

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.boxes + other.boxes,
            self.different + other.different,
            max(self.pixels, other.pixels),
            max(self.score, other.score),
        )


def compare(first: InstanceData, second: InstanceData, limit: int, lowest: float) -> Agreement:
    """Match the boxes of two lists.

    Boxes near the score cutoff may lack a match, as rounding of a score decides which of them a detector
    keeps.

    Args:
        first: Has ``bboxes`` ``(N, 4)``, ``scores`` in descending order, and ``labels``.
        second: The same.
        limit: Maximum number of boxes that a detector keeps.
        lowest: Minimum score of boxes.
    """
    first, second = first[:limit], second[:limit]
    full = [each for each in (first, second) if len(each) == limit]
    cut = max([lowest, *(float(each.scores.min()) for each in full if limit)]) + SCORE_TOLERANCE
    free = torch.ones(len(second), dtype=torch.bool)
    pixels, score, different, pairs = 0.0, 0.0, 0, 0
    for box, value, label in zip(first.bboxes, first.scores, first.labels, strict=True):
        distance = (second.bboxes - box).abs()
        allowed = (PIXEL_TOLERANCE + RELATIVE_TOLERANCE * box.abs()).expand_as(distance)
        near = (distance <= allowed).all(1) & ((second.scores - value).abs() <= SCORE_TOLERANCE)
        found = (near & free & (second.labels == label)).nonzero()
        if not len(found):
            different += int(value > cut)
            continue
        index = int(found[0])
        free[index] = False
        pairs += 1
        pixels = max(pixels, float(distance[index].max()))
        score = max(score, float((second.scores[index] - value).abs()))
    different += int((second.scores[free] > cut).sum())
    return Agreement(pairs, different, pixels, score)
