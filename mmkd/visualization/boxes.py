"""The boxes of an image: its objects, what a detector finds, and which of that is right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor

IOU = 0.5  # of a right box with its object, as for F1


@dataclass
class Boxes:
    """The boxes of one image.

    Attributes:
        boxes: ``(n, 4)``, x1 y1 x2 y2, in px of the original image.
        labels: ``(n,)``, indices into the class names.
        scores: ``(n,)``, or ``None`` for ground truth.
        ignored: Of ground truth the objects and crowds that do not count.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    ignored: Boxes | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, threshold: float) -> Boxes:
        """Those whose score is at least ``threshold``, the highest first.

        Args:
            threshold: In 0..1.
        """
        assert self.scores is not None
        keep = np.flatnonzero(self.scores >= threshold)
        return self.only(keep[np.argsort(-self.scores[keep], kind='stable')])

    def distinct(self) -> Boxes:
        """Of boxes that overlap at an IoU of 0.5 or more, whatever their classes, the first one."""
        keep: list[int] = []
        overlaps = overlap(self.boxes, self.boxes)
        for i in range(len(self)):
            if not keep or overlaps[i, keep].max() < IOU:
                keep.append(i)
        return self.only(np.array(keep, dtype=int))

    def only(self, keep: np.ndarray) -> Boxes:
        """Those of the indices, or of the mask, ``keep``."""
        scores = None if self.scores is None else self.scores[keep]
        return replace(self, boxes=self.boxes[keep], labels=self.labels[keep], scores=scores)

    def relabelled(self, labels: dict[int, int]) -> Boxes:
        """Those whose class has another label in ``labels``, with that label."""
        kept = self.only(np.array([label in labels for label in self.labels], dtype=bool))
        new = np.array([labels[label] for label in kept.labels], dtype=int)
        return replace(kept, labels=new)


class Judgement(NamedTuple):
    """What became of the boxes and objects of an image.

    Attributes:
        right: ``(found,)`` bool, boxes that match an object.
        wrong: ``(found,)`` bool; a box on an ignored object is neither.
        hit: ``(objects,)`` bool, objects that were found.
    """

    right: np.ndarray
    wrong: np.ndarray
    hit: np.ndarray

    @property
    def f1(self) -> float:
        """F1 of this image; 1 where there is nothing to find and nothing was found."""
        total = 2 * self.right.sum() + self.wrong.sum() + (~self.hit).sum()
        return float(2 * self.right.sum() / total) if total else 1.0

    def __str__(self) -> str:
        return f'{self.right.sum()} right · {self.wrong.sum()} wrong · {(~self.hit).sum()} missed'


def of_sample(sample: DetDataSample) -> Boxes:
    """What a detector found in an image, at any score.

    Args:
        sample: With ``pred_instances``, boxes in px of the original image.
    """
    found = sample.pred_instances.detach().cpu()
    boxes = get_box_tensor(found.bboxes)
    return Boxes(boxes.float().numpy(), found.labels.numpy(), found.scores.float().numpy())


def judge(found: Boxes, truth: Boxes) -> Judgement:
    """Which boxes are right and which objects were found.

    From the highest score down, a box takes the object of its class that it overlaps most among those
    left; it is right if their IoU is at least 0.5. A box that is not, and half of which lies on an
    ignored object of its class, does not count, as in COCO's evaluation.

    Args:
        found: Highest score first.
        truth: The objects.
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
    return Judgement(right, wrong, hit)


def overlap(first: np.ndarray, second: np.ndarray, mode: str = 'iou') -> np.ndarray:
    """IoU of every box of ``(n, 4)`` with every one of ``(m, 4)``; ``iof``: over the first's area."""
    pair = (torch.from_numpy(np.asarray(boxes, dtype=np.float32)) for boxes in (first, second))
    return bbox_overlaps(*pair, mode=mode).numpy()
