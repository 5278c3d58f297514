"""Transform boxes from one view of an image to another: resizes, flips and crops of a training pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from ..errors import ConfigError

HOMOGRAPHY = 'homography_matrix'
# Largest off-diagonal term of a matrix, in pixels per pixel: less than one pixel across the largest images.
_MAX_SHEAR = 1e-4
# Largest distance between an edge of the image and of the view that counts as equal, in pixels.
_EDGE_TOLERANCE = 1.0


@dataclass(frozen=True)
class View:
    """The view of an image in a sample: ``x' = scale * x + offset`` for both axes.

    Args:
        scale: Horizontal and vertical scale from pixels of the image file; negative if flipped.
        offset: Horizontal and vertical offset, in pixels of the view.
        size: Width and height of the view without padding, in pixels.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    size: tuple[float, float]

    @classmethod
    def from_sample(cls, sample: DetDataSample) -> View:
        """Return the view that the meta information of a sample records.

        Raises:
            ConfigError: The view was not recorded, or includes rotation or shear.
        """
        meta = sample.metainfo
        height, width = meta['img_shape'][:2]
        matrix = meta.get(HOMOGRAPHY)
        if matrix is None:
            whole = tuple(meta.get('ori_shape', (height, width))[:2]) == (height, width)
            if not whole or meta.get('flip'):
                raise ConfigError(
                    f'train_dataloader: the samples do not record their view of the image; add '
                    f"'{HOMOGRAPHY}' to meta_keys of PackDetInputs, or train with DistillationHook, which "
                    f'adds it'
                )
            matrix = np.eye(3)
        matrix = np.asarray(matrix, dtype=np.float64)
        mixed = max(abs(matrix[0, 1]), abs(matrix[1, 0]), abs(matrix[2, 0]), abs(matrix[2, 1]))
        if mixed > _MAX_SHEAR or not matrix[0, 0] or not matrix[1, 1]:
            raise ConfigError(
                f'train_dataloader: image {meta.get("img_id")} was rotated, sheared or warped, but a cached '
                f'teacher supports only resizes, flips and crops; remove that transform'
            )
        return cls(
            (float(matrix[0, 0]), float(matrix[1, 1])),
            (float(matrix[0, 2]), float(matrix[1, 2])),
            (float(width), float(height)),
        )

    @classmethod
    def from_values(cls, numbers: Sequence[float]) -> View:
        """Return the view with these values: the inverse of :meth:`values`."""
        values = [float(number) for number in numbers]
        first, second, x, y, width, height = values
        return cls((first, second), (x, y), (width, height))

    def values(self) -> Tensor:
        """Return scale, offset and size as a tensor of shape (6,)."""
        return torch.tensor([*self.scale, *self.offset, *self.size], dtype=torch.float64)

    def scaled(self, factors: tuple[float, float]) -> View:
        """Return the same view in pixels of an image ``factors`` times as wide and high."""
        values = [
            value * factor
            for pair in (self.scale, self.offset, self.size)
            for value, factor in zip(pair, factors, strict=True)
        ]
        return View.from_values(values)


@dataclass(frozen=True)
class ViewTransform:
    """Transforms positions from one view of each image of a batch to another.

    Args:
        scale: Horizontal and vertical scale of each image, shape (N, 2).
        offset: Horizontal and vertical offset, in pixels of the new view, shape (N, 2).
        size: Width and height of the new views, shape (N, 2).
        low, high: Limits to which boxes are clipped, shape (N, 2): the edge of the new view on sides where
            it crops the image, elsewhere far outside.
        is_identity: Whether all new views equal the old views.
    """

    scale: Tensor
    offset: Tensor
    size: Tensor
    low: Tensor
    high: Tensor
    is_identity: bool

    @classmethod
    def between(cls, old: Sequence[View], new: Sequence[View]) -> ViewTransform:
        """Return the transform from the stored views to the views of a batch."""
        rows = []
        for before, after in zip(old, new, strict=True):
            scale = [b / a for a, b in zip(before.scale, after.scale, strict=True)]
            offset = [b - s * a for a, b, s in zip(before.offset, after.offset, scale, strict=True)]
            rows.append([*scale, *offset, *after.size, *before.size])
        values = torch.tensor(rows, dtype=torch.float64)
        scale, offset, size, whole = values.split(2, -1)
        start, end = offset, offset + scale * whole
        start, end = torch.minimum(start, end), torch.maximum(start, end)
        far = 1e6
        low = torch.where(start < -_EDGE_TOLERANCE, 0.0, -far)
        high = torch.where(end > size + _EDGE_TOLERANCE, size, far)
        still = (scale - 1).abs().amax() < 1e-6 and offset.abs().amax() < 1e-3
        still = bool(still) and bool((low < 0).all() and (high >= far).all())
        return cls(scale, offset, size, low, high, still)._each(Tensor.float)

    def to(self, device: torch.device) -> ViewTransform:
        """Return the transform on another device."""
        return self._each(lambda part: part.to(device))

    def rows(self, image: Tensor) -> ViewTransform:
        """Return the transform for rows; ``image`` is the index of each row's image, shape (n,)."""
        return self._each(lambda part: part[image])

    def _each(self, function: Callable[[Tensor], Tensor]) -> ViewTransform:
        names = ('scale', 'offset', 'size', 'low', 'high')
        moved: dict[str, Any] = {name: function(getattr(self, name)) for name in names}
        return replace(self, **moved)

    def points(self, points: Tensor) -> Tensor:
        """Transform points x, y of the old view to the new view, shape (N, …, 2)."""
        scale, offset = (_like(value, points) for value in (self.scale, self.offset))
        return points * scale + offset

    def boxes(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Transform boxes of the old view to the new view, and clip them where it crops the image.

        Args:
            boxes: Corners x1, y1, x2, y2, shape (N, …, 4).

        Returns:
            Boxes of the same shape, and the visible share of each box's area, shape (N, …).
        """
        corners = [self.points(corner) for corner in boxes.split(2, -1)]
        whole = torch.cat([torch.minimum(*corners), torch.maximum(*corners)], -1)
        low, high = _like(self.low, corners[0]), _like(self.high, corners[0])
        cut = torch.cat([corner.clamp(min=low, max=high) for corner in whole.split(2, -1)], -1)
        whole, cut_size = (each[..., 2:] - each[..., :2] for each in (whole, cut))
        # For a box without width or height: whether it is in the view.
        inside = (corners[0] >= low) & (corners[0] <= high)
        share = torch.where(whole > 1e-6, cut_size / whole.clamp(min=1e-6), inside.float())
        return cut, share.prod(-1)


def _like(value: Tensor, points: Tensor) -> Tensor:
    """Reshape a value per image, shape (N, 2), to broadcast with points, shape (N, …, 2)."""
    return value.reshape(len(value), *[1] * (points.dim() - 2), 2)


def image_key(sample: DetDataSample) -> str:
    """Return the key of a sample's image in a cache: the id of the image and, if known, its file name.

    Raises:
        ConfigError: The sample has no image id.
    """
    meta: dict[str, Any] = sample.metainfo
    if 'img_id' not in meta:
        raise ConfigError(
            'train_dataloader: the samples have no img_id, by which a cached teacher finds an image; add '
            "'img_id' to meta_keys of PackDetInputs"
        )
    file = os.path.basename(meta.get('img_path') or '')
    return f'{meta["img_id"]} {file}'.rstrip()
