"""Kinds of errors of a detector, and how much average precision each costs (TIDE).

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020,
https://arxiv.org/abs/2008.08115, sections 2.2 and 2.3. Matching and AP are COCO's, at an IoU of 0.5.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from mmdet.datasets.api_wrappers import COCO, COCOeval
from pycocotools import mask

from ..f1_metric import MAX_DETECTIONS
from .coco_results import Truth

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU thresholds tf and tb of the paper
CORRECTABLE = ('classification', 'localisation')
FALSE_POSITIVES = (*CORRECTABLE, 'both', 'duplicate', 'background')
KINDS = (*FALSE_POSITIVES, 'missed')
#: All false positives, and all false negatives, fixed together.
SUMS = ('false positives', 'false negatives')
#: Object sizes of COCO, px².
SIZES = {'small': (0, 32**2), 'medium': (32**2, 96**2), 'large': (96**2, 1e10)}
RIGHT = ''


@dataclass(frozen=True)
class Detection:
    """A correct detection, or an error.

    Attributes:
        category: Id of its class.
        score: In 0..1.
        kind: One of :data:`KINDS`, or :data:`RIGHT`.
        size: One of :data:`SIZES`: the size of the related object; of a background error, its own size.
        target: Id of the related object, ``None`` for a background error.
    """

    category: int
    score: float
    kind: str = RIGHT
    size: str = ''
    target: int | None = None


@dataclass(frozen=True)
class Object:
    """An object that is evaluated.

    Attributes:
        category: Id of its class.
        size: One of :data:`SIZES`.
        found: Whether a detection matches it.
        missed: Whether no detection matches it and no classification or localisation error relates to it.
    """

    category: int
    size: str
    found: bool
    missed: bool = False


@dataclass
class Errors:
    """The errors of a detector on a data set.

    Attributes:
        detections: The evaluated detections, in the order of COCO evaluation.
        objects: The evaluated objects, by id.
        categories: Ids of the classes.
        ap_by_size: COCO AP at IoU 0.5 per object size; ``None`` for sizes without objects.
    """

    detections: list[Detection]
    objects: dict[int, Object]
    categories: list[int]
    ap_by_size: dict[str, float | None] = field(default_factory=dict)

    def average_precision(self, fixed: Collection[str] = (), size: str | None = None) -> float:
        """AP at IoU 0.5, in 0..1, after fixing some kinds of errors.

        A classification or localisation error is corrected, so that it matches its object. It is removed if
        the object already has a match, or if a corrected error with a higher score matches it. Errors of
        other kinds are removed. A missed object is removed from the ground truth.

        Args:
            fixed: Kinds to fix, of :data:`KINDS` and :data:`SUMS`.
            size: Fix only errors of this object size; None for all.
        """
        fixes = set(fixed)
        corrects = fixes & {*CORRECTABLE} if 'false positives' not in fixes else set()
        removes = {*FALSE_POSITIVES} if 'false positives' in fixes else fixes & {*FALSE_POSITIVES}
        best: dict[int, int] = {}  # the error that is corrected to match each object
        for index, each in enumerate(self.detections):
            if each.kind not in corrects or size not in (None, each.size):
                continue
            target = each.target
            assert target is not None
            if self.objects[target].found:
                continue
            if target not in best or self.detections[best[target]].score < each.score:
                best[target] = index
        corrected = {index: self.objects[target] for target, index in best.items()}
        kept: dict[int, list[tuple[float, bool]]] = defaultdict(list)
        for index, each in enumerate(self.detections):
            if index in corrected:
                kept[corrected[index].category].append((each.score, True))
            elif each.kind not in removes or size not in (None, each.size):
                kept[each.category].append((each.score, each.kind == RIGHT))
        wanted: dict[int, int] = defaultdict(int)
        for item in self.objects.values():
            removed = 'false negatives' in fixes or ('missed' in fixes and item.missed)
            if item.found or not removed or size not in (None, item.size):
                wanted[item.category] += 1
        values = [_average_precision(kept[each], wanted[each]) for each in wanted]
        if not values:  # all objects were removed
            return 1.0 if self.objects else 0.0
        return float(np.mean(values))

    def gain(self, kind: str, size: str | None = None) -> float:
        """dAP: the gain of AP, in 0..1, from fixing a kind of errors."""
        return self.average_precision([kind], size) - self.average_precision()

    def count(self, kind: str, size: str | None = None) -> int:
        """The number of errors of a kind."""
        if kind == 'missed':
            return sum(o.missed and size in (None, o.size) for o in self.objects.values())
        return sum(d.kind == kind and size in (None, d.size) for d in self.detections)

    def numbers(self) -> dict[str, Any]:
        """All results as plain values, for JSON; AP and dAP in percent."""
        sizes: dict[str, str | None] = {'all': None} | {size: size for size in SIZES}
        return dict(
            AP50=100 * self.average_precision(),
            AP50_by_size={
                size: None if value is None else 100 * value
                for size, value in self.ap_by_size.items()
            },
            objects={
                name: sum(size in (None, o.size) for o in self.objects.values())
                for name, size in sizes.items()
            },
            dAP={
                kind: {name: 100 * self.gain(kind, size) for name, size in sizes.items()}
                for kind in (*KINDS, *SUMS)
            },
            count={
                kind: {name: self.count(kind, size) for name, size in sizes.items()}
                for kind in KINDS
            },
        )


def find_errors(truth: Truth, results: Sequence[dict[str, Any]]) -> Errors:
    """Classify the errors of a detector.

    Args:
        truth: The ground truth.
        results: Detections in COCO format: ``image_id``, ``category_id``, ``score`` and ``bbox`` (x, y,
            width and height in px).
    """
    evaluation = _evaluate(truth, results)
    everywhere = [e for e in evaluation.evalImgs if e and e['aRng'] == evaluation.params.areaRng[0]]
    objects: dict[int, Object] = {}
    by_image: dict[Any, list[dict]] = defaultdict(list)
    for each in everywhere:
        for number, identity in enumerate(each['gtIds']):
            if not each['gtIgnore'][number]:
                annotation = truth.coco.anns[identity]
                objects[identity] = Object(
                    int(each['category_id']),
                    size_of(annotation['area']),
                    found=bool(each['gtMatches'][0][number]),
                )
                by_image[each['image_id']].append(annotation)
    detections = []
    for each in everywhere:
        overlaps = _ImageObjects(by_image[each['image_id']], each['category_id'])
        for number, identity in enumerate(each['dtIds']):
            if each['dtIgnore'][0][number]:
                continue
            score = float(each['dtScores'][number])
            found = Detection(int(each['category_id']), score)
            if not each['dtMatches'][0][number]:
                found = overlaps.error(evaluation.cocoDt.anns[identity], found)
            detections.append(found)
    concerned = {each.target for each in detections if each.kind in CORRECTABLE}
    for identity, target in objects.items():
        missed = not target.found and identity not in concerned
        objects[identity] = replace(target, missed=missed)
    return Errors(detections, objects, truth.categories, _by_size(evaluation))


def _evaluate(truth: Truth, results: Sequence[dict[str, Any]]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        # loadRes fails on an empty list; an empty COCO has no annotation either.
        found = truth.coco.loadRes([dict(each) for each in results]) if results else COCO()
        evaluation = COCOeval(truth.coco, found, 'bbox')
        evaluation.params.catIds = truth.categories
        evaluation.params.imgIds = truth.images
        evaluation.params.iouThrs = np.array([FOREGROUND])
        evaluation.params.areaRng = [[0, 1e10], *map(list, SIZES.values())]
        evaluation.params.areaRngLbl = ['all', *SIZES]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _by_size(evaluation: COCOeval) -> dict[str, float | None]:
    precision = evaluation.eval['precision'][0, :, :, :, 0]  # recalls, classes, sizes
    values = {}
    for number, name in enumerate(evaluation.params.areaRngLbl):
        known = precision[:, :, number][precision[:, :, number] > -1]
        values[name] = float(known.mean()) if known.size else None
    return values


class _ImageObjects:
    """The objects of an image, for classifying the errors of one class."""

    def __init__(self, objects: list[dict[str, Any]], category: int) -> None:
        self.objects = objects
        self.boxes = np.array([each['bbox'] for each in objects], dtype=float).reshape(-1, 4)
        self.same = np.array([each['category_id'] == category for each in objects], dtype=bool)

    def error(self, detection: dict[str, Any], found: Detection) -> Detection:
        """Classify an unmatched detection, with the rules in the order of TIDE's code."""
        own = size_of(detection['area'])
        if not self.objects:
            return replace(found, kind='background', size=own)
        box = np.array([detection['bbox']], dtype=float)
        ious = np.asarray(mask.iou(box, self.boxes, [0] * len(self.boxes)))[0]
        same, other = np.where(self.same, ious, 0), np.where(self.same, 0, ious)
        if BACKGROUND <= same.max() < FOREGROUND:
            kind, index = 'localisation', same.argmax()
        elif other.max() >= FOREGROUND:
            kind, index = 'classification', other.argmax()
        elif same.max() >= FOREGROUND:
            kind, index = 'duplicate', same.argmax()
        elif other.max() <= BACKGROUND:
            return replace(found, kind='background', size=own)
        else:
            kind, index = 'both', other.argmax()
        target = self.objects[index]
        return replace(found, kind=kind, size=size_of(target['area']), target=target['id'])


def size_of(area: float) -> str:
    """The COCO size name of an area in px²."""
    return next(size for size, (_, end) in SIZES.items() if area < end or size == 'large')


def _average_precision(found: list[tuple[float, bool]], objects: int) -> float:
    """COCO AP: the mean, over 101 recalls, of the highest precision at that recall or above."""
    scores = np.array([score for score, _ in found])
    right = np.array([right for _, right in found], dtype=bool)
    right = right[np.argsort(-scores, kind='mergesort')]
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recalls = np.linspace(0, 1, 101)
    at = np.searchsorted(hits / objects, recalls, side='left')
    return float(np.append(precision, 0)[at].mean())
