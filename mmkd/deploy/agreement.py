"""Whether two runs of a detector find the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmengine.structures import InstanceData

#: Largest difference of scores.
SCORE = 1e-3
#: Largest difference of coordinates, relative, and in px for those near 0.
RELATIVE, PIXELS = 1e-3, 1e-2


@dataclass(frozen=True)
class Agreement:
    """How two lists of boxes compare.

    Attributes:
        boxes: Boxes of the same label, place and score.
        different: Boxes that only one list has, without those at the cut.
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
    """Pair the boxes of two lists.

    Which of several boxes at the cut is kept may depend on the last digit of a score, so those may be
    without a counterpart.

    Args:
        first: With ``bboxes`` ``(N, 4)``, ``scores`` and ``labels``; scores fall.
        second: The same.
        limit: The number of boxes that are kept.
        lowest: The score that boxes must have.
    """
    first, second = first[:limit], second[:limit]
    full = [each for each in (first, second) if len(each) == limit]
    cut = max([lowest, *(float(each.scores.min()) for each in full if limit)]) + SCORE
    free = torch.ones(len(second), dtype=torch.bool)
    pixels, score, different, pairs = 0.0, 0.0, 0, 0
    for box, value, label in zip(first.bboxes, first.scores, first.labels, strict=True):
        distance = (second.bboxes - box).abs()
        allowed = (PIXELS + RELATIVE * box.abs()).expand_as(distance)
        near = (distance <= allowed).all(1) & ((second.scores - value).abs() <= SCORE)
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
