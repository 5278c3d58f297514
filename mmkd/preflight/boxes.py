"""Whether boxes lie where their format puts them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from mmdet.datasets import XMLDataset

from ..errors import ConfigError, UserError
from .advice import Advice
from .annotations import AnnotatedData, Boxes
from .planned_run import PlannedRun

# A border may be drawn along the outermost pixel, and rounded.
TOLERANCE = 2.0  # px
SHOWN = 3
MANY = 10  # boxes, which do not all lie in one corner of their images by chance


def check_boxes(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Boxes have an area, in pixels, on their image."""
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
            f'{data.key}: {path} has {_count(bad, boxes, "with a coordinate that is no number")}'
        )
        return
    # VOC's count from 1, so 0..1 becomes -1..0.
    low = corners.min()
    if corners.max() - min(low, 0) <= 1.5 and boxes.sizes.max() > TOLERANCE:
        yield ConfigError(
            f'{data.key}: {path} has boxes as shares of the image (0 to 1); multiply them by the width and '
            f'height of the image'
        )
        return
    if len(corners) >= MANY and low >= 0 and corners.max() <= 101 and boxes.sizes.min() >= 200:
        yield Advice(
            f'{data.key}: {path} has all {len(corners)} boxes between 0 and 100; if they are per cent of the '
            f'image, make pixels of them'
        )
    if isinstance(data.dataset, XMLDataset):
        corners = np.trunc(corners + 1) - 1  # as the data set reads them
    flat = degenerate(corners, boxes.sizes) | boxes.left_out
    outside = ~flat & outside_image(corners, boxes.sizes)
    if data.coco is not None and outside.mean() > 0.5:
        widths = corners[:, 2:] - corners[:, :2]  # the last two numbers of the file
        fits = (widths > corners[:, :2]).all(1) & (widths <= boxes.sizes + TOLERANCE).all(1)
        if fits.mean() > 0.95:
            yield ConfigError(
                f'{data.key}: {path} has boxes as corners (x1, y1, x2, y2), where x, y, width and height '
                f'must stand; subtract x1 from x2 and y1 from y2'
            )
            return
    if flat.any():
        what = 'without an area on the image'
        if flat.all():
            yield ConfigError(f'{data.key}: {path} has only boxes {what}; mend the file')
            return
        yield Advice(f'{data.key}: {path} has {_count(flat, boxes, what)}; they are not trained on')
    if outside.any():
        yield Advice(
            f'{data.key}: {path} has {_count(outside, boxes, "that reach out of the image")}; look whether '
            f'its size is right'
        )


def degenerate(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes have no area inside their image.

    Args:
        corners: x1, y1, x2, y2 in pixels, shape (N, 4).
        sizes: Width and height of their images, shape (N, 2); 0 where unknown.

    Returns:
        Shape (N,), bool.
    """
    size = np.where(sizes > 0, sizes, np.inf)
    inside = np.minimum(corners[:, 2:], size) - np.maximum(corners[:, :2], 0)
    return ~((corners[:, 2:] > corners[:, :2]).all(1) & (inside > 0).all(1))


def outside_image(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes reach out of their image by more than a rounded border; shapes as :func:`degenerate`."""
    size = np.where(sizes > 0, sizes, np.inf)
    return np.logical_or(
        (corners[:, :2] < -TOLERANCE).any(1), (corners[:, 2:] > size + TOLERANCE).any(1)
    )


def _count(bad: np.ndarray, boxes: Boxes, what: str) -> str:
    first = [boxes.name(int(i)) for i in np.flatnonzero(bad)[:SHOWN]]
    return f'{bad.sum()} of {len(bad)} boxes {what}: {shown(first, int(bad.sum()))}'


def shown(first: Sequence[str], count: int) -> str:
    """The first few of some names, and that there are more."""
    return f'{", ".join(first)}{", …" if count > len(first) else ""}'
