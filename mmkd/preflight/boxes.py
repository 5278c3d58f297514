"""Check that boxes are in pixels, have an area and are on their image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from mmdet.datasets import XMLDataset

from ..errors import ConfigError, UserError
from .advice import Advice
from .annotations import AnnotatedData, Boxes
from .planned_run import PlannedRun

# Annotators may draw a box along the outermost pixel, and tools round its coordinates.
TOLERANCE = 2.0  # px
MAX_NAMES = 3
# With fewer boxes, all of them may be in the top left corner of the images by chance.
MIN_BOXES_FOR_PERCENT = 10


def check_boxes(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Boxes are in pixels and have an area on their image."""
    for data in run.data:
        if isinstance(data.classes, str) or data.classes is None:
            continue
        boxes = data.boxes()
        if len(boxes.corners):
            yield from _check(data, boxes)


def _check(data: AnnotatedData, boxes: Boxes) -> Iterator[UserError | Advice]:
    corners, path = boxes.corners, data.path
    if not np.isfinite(corners).all():
        bad = ~np.isfinite(corners).all(1)
        yield ConfigError(
            f'{data.key}: {path} has {_count_boxes(bad, boxes, "with a coordinate that is not a number")}; '
            f'correct the file'
        )
        return
    # VOC files count pixels from 1, so 0..1 becomes -1..0.
    low = corners.min()
    if corners.max() - min(low, 0) <= 1.5 and boxes.sizes.max() > TOLERANCE:
        yield ConfigError(
            f'{data.key}: {path} has boxes as fractions of the image (0 to 1); multiply them by the width '
            f'and height of the image'
        )
        return
    enough = len(corners) >= MIN_BOXES_FOR_PERCENT and boxes.sizes.min() >= 200
    if enough and low >= 0 and corners.max() <= 101:
        yield Advice(
            f'{data.key}: {path} has all {len(corners)} boxes between 0 and 100; if they are in per cent of '
            f'the image, convert them to pixels'
        )
    if isinstance(data.dataset, XMLDataset):
        corners = np.trunc(corners + 1) - 1  # as the data set reads them
    flat = degenerate(corners, boxes.sizes) | boxes.dropped
    outside = ~flat & outside_image(corners, boxes.sizes)
    if data.coco is not None and outside.mean() > 0.5:
        widths = corners[:, 2:] - corners[:, :2]  # the last two numbers of the file
        fits = (widths > corners[:, :2]).all(1) & (widths <= boxes.sizes + TOLERANCE).all(1)
        if fits.mean() > 0.95:
            yield ConfigError(
                f'{data.key}: {path} must have boxes as (x, y, width, height), got corners '
                f'(x1, y1, x2, y2); subtract x1 from x2 and y1 from y2'
            )
            return
    if flat.any():
        what = 'without an area on the image'
        if flat.all():
            yield ConfigError(f'{data.key}: {path} has only boxes {what}; correct the file')
            return
        yield Advice(
            f'{data.key}: {path} has {_count_boxes(flat, boxes, what)}; they are not used for training'
        )
    if outside.any():
        yield Advice(
            f'{data.key}: {path} has {_count_boxes(outside, boxes, "that extend beyond the image")}; check '
            f'the size of the image'
        )


def degenerate(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Find boxes without an area inside their image.

    Args:
        corners: x1, y1, x2, y2 in pixels, shape (N, 4).
        sizes: Width and height of their images, shape (N, 2); 0 where unknown.

    Returns:
        True for a box without an area, shape (N,), bool.
    """
    size = np.where(sizes > 0, sizes, np.inf)
    inside = np.minimum(corners[:, 2:], size) - np.maximum(corners[:, :2], 0)
    return ~((corners[:, 2:] > corners[:, :2]).all(1) & (inside > 0).all(1))


def outside_image(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Find boxes that extend more than 2 px beyond their image; shapes as :func:`degenerate`."""
    size = np.where(sizes > 0, sizes, np.inf)
    return np.logical_or(
        (corners[:, :2] < -TOLERANCE).any(1), (corners[:, 2:] > size + TOLERANCE).any(1)
    )


def _count_boxes(bad: np.ndarray, boxes: Boxes, what: str) -> str:
    first = [boxes.name(int(i)) for i in np.flatnonzero(bad)[:MAX_NAMES]]
    return f'{bad.sum()} of {len(bad)} boxes {what}: {first_few(first, int(bad.sum()))}'


def first_few(first: Sequence[str], count: int) -> str:
    """The given names, with an ellipsis if they are fewer than ``count``."""
    return f'{", ".join(first)}{", …" if count > len(first) else ""}'
