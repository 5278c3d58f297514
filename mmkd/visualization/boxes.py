"""Boxes of an image: ground truth, detections, and their matches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor

IOU = 0.5  # minimum IoU of a correct box with its object, as for F1


@dataclass
class Boxes:
    """The boxes of one image, from a detector or from the ground truth.

    Attributes:
        boxes: ``(n, 4)``, x1 y1 x2 y2, in px of the original image.
        labels: ``(n,)``, indices into the class names.
        scores: ``(n,)``, or ``None`` for ground truth.
        ignored: Crowds and other objects of the ground truth that are not counted.

    Examples:
        >>> import numpy as np
        >>> from mmkd.visualization import Boxes
        >>> found = Boxes(
        ...     boxes=np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30.0]]),
        ...     labels=np.array([0, 1, 0]),
        ...     scores=np.array([0.9, 0.8, 0.2]),
        ... )
        >>> len(found), len(found.above(0.5)), len(found.above(0.5).without_overlaps())
        (3, 2, 1)
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    ignored: Boxes | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, threshold: float) -> Boxes:
        """The boxes with a score of at least ``threshold`` (0 to 1), highest score first."""
        assert self.scores is not None
        keep = np.flatnonzero(self.scores >= threshold)
        return self.select(keep[np.argsort(-self.scores[keep], kind='stable')])

    def without_overlaps(self) -> Boxes:
        """Only the first of boxes that overlap with an IoU of at least 0.5, across all classes."""
        keep: list[int] = []
        overlaps = overlap(self.boxes, self.boxes)
        for i in range(len(self)):
            if not keep or overlaps[i, keep].max() < IOU:
                keep.append(i)
        return self.select(np.array(keep, dtype=int))

    def select(self, keep: np.ndarray) -> Boxes:
        """The boxes at the indices, or of the boolean mask, ``keep``."""
        scores = None if self.scores is None else self.scores[keep]
        return replace(self, boxes=self.boxes[keep], labels=self.labels[keep], scores=scores)

    def relabelled(self, labels: dict[int, int]) -> Boxes:
        """The boxes with a label in ``labels``, mapped to the new label; others are dropped."""
        kept = self.select(np.array([label in labels for label in self.labels], dtype=bool))
        new = np.array([labels[label] for label in kept.labels], dtype=int)
        return replace(kept, labels=new)


class Matches(NamedTuple):
    """The result of matching the detections of an image to its objects.

    Attributes:
        right: ``(detections,)`` bool, true positives.
        wrong: ``(detections,)`` bool, false positives. A box on an ignored object is neither.
        hit: ``(objects,)`` bool, objects that were detected.

    Examples:
        >>> import numpy as np
        >>> from mmkd.visualization import Boxes, match_boxes
        >>> truth = Boxes(np.array([[0, 0, 10, 10], [20, 20, 30, 30.0]]), labels=np.array([0, 0]))
        >>> found = Boxes(np.array([[0, 0, 10, 9.0]]), labels=np.array([0]), scores=np.array([0.9]))
        >>> str(match_boxes(found, truth))
        '1 right · 0 wrong · 1 missed'
    """

    right: np.ndarray
    wrong: np.ndarray
    hit: np.ndarray

    @property
    def f1(self) -> float:
        """F1 of this image; 1 without objects and without detections."""
        total = 2 * self.right.sum() + self.wrong.sum() + (~self.hit).sum()
        return float(2 * self.right.sum() / total) if total else 1.0

    def __str__(self) -> str:
        return f'{self.right.sum()} right · {self.wrong.sum()} wrong · {(~self.hit).sum()} missed'


def predicted_boxes(sample: DetDataSample) -> Boxes:
    """The detections of an image with all scores.

    Args:
        sample: Has ``pred_instances`` with boxes in px of the original image.
    """
    found = sample.pred_instances.detach().cpu()
    boxes = get_box_tensor(found.bboxes)
    return Boxes(boxes.float().numpy(), found.labels.numpy(), found.scores.float().numpy())


def match_boxes(found: Boxes, truth: Boxes) -> Matches:
    """Match the detections of an image to its objects.

    In the order of the scores, each box is matched to the unmatched object of its class with the highest
    IoU. It is right if that IoU is at least 0.5. A box without a match is not counted if at least half of
    its area is on an ignored object of its class, as in COCO's evaluation.

    Args:
        found: Detections, highest score first.
        truth: The ground truth.
    """
    right = np.zeros(len(found), dtype=bool)
    hit = np.zeros(len(truth), dtype=bool)
    overlaps = overlap(found.boxes, truth.boxes)
    for i in range(len(found)):
        free = np.where((truth.labels == found.labels[i]) & ~hit, overlaps[i], 0)
        if free.size and free.max() >= IOU:
            right[i] = hit[free.argmax()] = True
    wrong = ~right
    if truth.ignored is not None and len(truth.ignored):
        covered = overlap(found.boxes, truth.ignored.boxes, 'iof')
        same = found.labels[:, None] == truth.ignored.labels[None]
        wrong &= np.where(same, covered, 0).max(axis=1, initial=0) < IOU
    return Matches(right, wrong, hit)


def overlap(first: np.ndarray, second: np.ndarray, mode: str = 'iou') -> np.ndarray:
    """IoU of ``(n, 4)`` with ``(m, 4)`` boxes, ``(n, m)``; ``iof`` divides by the area of the first box."""
    pair = (torch.from_numpy(np.asarray(boxes, dtype=np.float32)) for boxes in (first, second))
    return bbox_overlaps(*pair, mode=mode).numpy()
