"""Compare several detectors on named images, or on the images where they differ most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.dataset import BaseDataset, pseudo_collate

from ..errors import ConfigError
from ..f1_metric import ScoreCurve, best_shared_f1
from ..visualization import (
    Boxes,
    Column,
    draw_panels,
    ground_truth,
    image_path,
    load_image,
    match_boxes,
)

Progress = Callable[[Iterable], Iterable]
SCORE_THR = 0.5  # if no threshold of a detector is known
LOWEST_THR = 0.05


@dataclass
class Compared:
    """A detector and its detections.

    Attributes:
        name: Title of the detector.
        detect: Returns the detections in a batch of one image, with all scores.
        dataset: Data set with the pipeline of the detector's test data loader; all compared detectors have
            the same images.
        score_thr: Minimum score of the detections that are compared, in 0..1; ``None`` until it is known.
        found: Cached detections, by index of the image.
    """

    name: str
    detect: Callable[[dict[str, Any]], Boxes]
    dataset: BaseDataset
    score_thr: float | None = None
    found: dict[int, Boxes] = field(default_factory=dict)

    @torch.no_grad()
    def detections(self, index: int) -> Boxes:
        """The detections in an image, with all scores."""
        if index not in self.found:
            self.found[index] = self.detect(pseudo_collate([self.dataset[index]]))
        return self.found[index]

    def shown(self, index: int) -> Boxes:
        """The detections that are drawn and counted, highest score first.

        A detector may report one object as several classes. Metrics count all of these boxes, but a figure
        with all of them is unreadable: of overlapping boxes, only the top-scoring one is kept.
        """
        assert self.score_thr is not None
        return self.detections(index).above(self.score_thr).without_overlaps()


@dataclass
class Comparison:
    """The comparison of detectors on images of a data set.

    Attributes:
        detectors: The detectors, in the order of columns.
        images: Indices of the selected images.
        scores: F1 per detector, in 0..1, for every image that was run.
    """

    detectors: Sequence[Compared]
    images: list[int]
    scores: dict[int, list[float]]

    @property
    def dataset(self) -> BaseDataset:
        """The data set of the first detector; the others have the same images."""
        return self.detectors[0].dataset

    def draw(self) -> Figure:
        """Draw one row per image: ground truth, then each detector."""
        columns = [
            Column(
                each.name,
                [each.shown(i) for i in self.images],
                f'score at least {each.score_thr:.2f}',
            )
            for each in self.detectors
        ]
        truths = [ground_truth(self.dataset, i) for i in self.images]
        images = [load_image(self.dataset, i) for i in self.images]
        names = [Path(image_path(self.dataset, i)).name for i in self.images]
        return draw_panels(images, truths, columns, self.dataset.metainfo['classes'], names)

    def numbers(self) -> dict[str, Any]:
        """The content of the figure as plain values, for JSON."""
        names = [each.name for each in self.detectors]
        images = []
        for index in self.images:
            truth = ground_truth(self.dataset, index)
            counts = {}
            for each in self.detectors:
                matches = match_boxes(each.shown(index), truth)
                counts[each.name] = dict(
                    f1=matches.f1,
                    right=int(matches.right.sum()),
                    wrong=int(matches.wrong.sum()),
                    missed=int((~matches.hit).sum()),
                )
            info = self.dataset.get_data_info(index)
            images.append(
                dict(
                    image=image_path(self.dataset, index),
                    id=info.get('img_id'),
                    objects=len(truth),
                    difference=_difference(self.scores[index]),
                    detectors=counts,
                )
            )
        return dict(
            detectors={each.name: dict(score_thr=each.score_thr) for each in self.detectors},
            images_judged=len(self.scores),
            chosen=images,
            f1_of_all={
                Path(image_path(self.dataset, index)).name: dict(zip(names, scores, strict=True))
                for index, scores in self.scores.items()
            },
        )


def compare(
    detectors: Sequence[Compared], images: Sequence[int], progress: Progress = iter
) -> Comparison:
    """Compare detectors on the given images.

    Args:
        detectors: At least one; each without ``score_thr`` gets 0.5.
        images: Indices into their data sets.
        progress: Wraps the iteration over images, for a progress bar.
    """
    for each in detectors:
        each.score_thr = SCORE_THR if each.score_thr is None else each.score_thr
    return Comparison(detectors, list(images), _f1_of_images(detectors, images, progress))


def most_different(
    detectors: Sequence[Compared], count: int, progress: Progress = iter
) -> Comparison:
    """Compare detectors on the images of a data set with the largest difference of F1.

    If images have the same difference, those with more objects come first. A detector without ``score_thr``
    gets the threshold of its highest F1 on these images.

    Args:
        detectors: At least two.
        count: Maximum number of images; images without a difference are not selected.
        progress: Wraps the iteration over images, for a progress bar.

    Raises:
        ConfigError: The detectors have the same F1 on every image.
    """
    every = range(len(detectors[0].dataset))
    for index in progress(every):
        for each in detectors:
            each.detections(index)
    for each in detectors:
        if each.score_thr is None:
            each.score_thr = best_threshold(each)
    scores = _f1_of_images(detectors, every)
    numbers = [len(ground_truth(detectors[0].dataset, index)) for index in every]
    order = sorted(every, key=lambda i: (-_difference(scores[i]), -numbers[i], i))
    chosen = [i for i in order[:count] if _difference(scores[i]) > 0]
    if not chosen:
        raise ConfigError(
            f'--most-different: {", ".join(each.name for each in detectors)} have the same F1 on each of '
            f'{len(every)} images; select images with --images'
        )
    return Comparison(detectors, chosen, scores)


def _f1_of_images(
    detectors: Sequence[Compared], images: Iterable[int], progress: Progress = iter
) -> dict[int, list[float]]:
    scores = {}
    for index in progress(images):
        truth = ground_truth(detectors[0].dataset, index)
        scores[index] = [match_boxes(each.shown(index), truth).f1 for each in detectors]
    return scores


def _difference(scores: Sequence[float]) -> float:
    return max(scores) - min(scores)


def best_threshold(detector: Compared) -> float:
    """The score threshold with the highest mean F1 over classes, on all images of the data set.

    Args:
        detector: A detector with cached detections of all images.
    """
    per_class: dict[int, list[tuple[float, bool]]] = {}
    objects: dict[int, int] = {}
    for index, found in detector.found.items():
        truth = ground_truth(detector.dataset, index)
        found = found.above(0)
        matches = match_boxes(found, truth)
        counted = matches.right | matches.wrong
        assert found.scores is not None
        for label, score, right in zip(
            found.labels[counted], found.scores[counted], matches.right[counted], strict=True
        ):
            per_class.setdefault(int(label), []).append((float(score), bool(right)))
        for label in truth.labels.tolist():
            objects[label] = objects.get(label, 0) + 1
    curves = []
    for label, number in objects.items():
        scores, right = np.array(per_class.get(label, [])).reshape(-1, 2).T
        curves.append(ScoreCurve.from_scores(scores, right == 1, number))
    return max(best_shared_f1(curves)[1], LOWEST_THR)
