"""From one view of an image to another: what a training pipeline's resizes, flips and crops do to boxes."""

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
# Of the two mixed terms of a matrix, in pixels a pixel: less than a pixel across the largest images.
_MAX_SHEAR = 1e-4
# How far the edge of an image may lie from that of the view and still be the same, in pixels.
_EDGE_TOLERANCE = 1.0


@dataclass(frozen=True)
class View:
    """Where a sample shows its image: ``x' = scale * x + offset`` for both axes.

    Args:
        scale: Across and down, from pixels of the image file; negative where it is flipped.
        offset: In pixels of the view.
        size: Width and height of the view without padding, in pixels.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    size: tuple[float, float]

    @classmethod
    def from_sample(cls, sample: DetDataSample) -> View:
        """The view that a sample's meta information records.

        Raises:
            ConfigError: It was not recorded, or boxes cannot follow (rotation, shear).
        """
        meta = sample.metainfo
        height, width = meta['img_shape'][:2]
        matrix = meta.get(HOMOGRAPHY)
        if matrix is None:
            whole = tuple(meta.get('ori_shape', (height, width))[:2]) == (height, width)
            if not whole or meta.get('flip'):
                raise ConfigError(
                    f"the samples do not record how their view was cut out of the image; add '{HOMOGRAPHY}' "
                    f'to meta_keys of PackDetInputs in train_dataloader, or train with DistillationHook, '
                    f'which does so'
                )
            matrix = np.eye(3)
        matrix = np.asarray(matrix, dtype=np.float64)
        mixed = max(abs(matrix[0, 1]), abs(matrix[1, 0]), abs(matrix[2, 0]), abs(matrix[2, 1]))
        if mixed > _MAX_SHEAR or not matrix[0, 0] or not matrix[1, 1]:
            raise ConfigError(
                f"image {meta.get('img_id')} was rotated, sheared or warped: a cached teacher's boxes "
                f'can be resized, flipped and cropped alone; leave that transform out of the '
                f'training pipeline'
            )
        return cls(
            (float(matrix[0, 0]), float(matrix[1, 1])),
            (float(matrix[0, 2]), float(matrix[1, 2])),
            (float(width), float(height)),
        )

    @classmethod
    def from_values(cls, numbers: Sequence[float]) -> View:
        """The inverse of :meth:`values`."""
        values = [float(number) for number in numbers]
        first, second, x, y, width, height = values
        return cls((first, second), (x, y), (width, height))

    def values(self) -> Tensor:
        """Scale, offset and size, shape (6,)."""
        return torch.tensor([*self.scale, *self.offset, *self.size], dtype=torch.float64)

    def scaled(self, factors: tuple[float, float]) -> View:
        """The same view in pixels of an image ``factors`` times as wide and as high."""
        values = [
            value * factor
            for pair in (self.scale, self.offset, self.size)
            for value, factor in zip(pair, factors, strict=True)
        ]
        return View.from_values(values)


@dataclass(frozen=True)
class ViewTransform:
    """Transforms positions of one view of each image of a batch to another.

    Args:
        scale: Of each image across and down, shape (N, 2).
        offset: Likewise, in pixels of the new view.
        size: Width and height of the new views, shape (N, 2).
        low, high: Where boxes end: the edge of the new view on sides where it cuts the image off,
            elsewhere far outside, shape (N, 2).
        is_identity: Whether all new views are the old ones.
    """

    scale: Tensor
    offset: Tensor
    size: Tensor
    low: Tensor
    high: Tensor
    is_identity: bool

    @classmethod
    def between(cls, old: Sequence[View], new: Sequence[View]) -> ViewTransform:
        """From the views in which a teacher saw images to those that a batch shows."""
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
        """The same on another device."""
        return self._each(lambda part: part.to(device))

    def rows(self, image: Tensor) -> ViewTransform:
        """The same for rows of which each belongs to an image, shape (n,)."""
        return self._each(lambda part: part[image])

    def _each(self, function: Callable[[Tensor], Tensor]) -> ViewTransform:
        names = ('scale', 'offset', 'size', 'low', 'high')
        moved: dict[str, Any] = {name: function(getattr(self, name)) for name in names}
        return replace(self, **moved)

    def points(self, points: Tensor) -> Tensor:
        """Points x, y of the old view in the new one, shape (N, …, 2)."""
        scale, offset = (_like(value, points) for value in (self.scale, self.offset))
        return points * scale + offset

    def boxes(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes of the old view in the new one, cut off where it cuts the image off.

        Args:
            boxes: Corners x1, y1, x2, y2, shape (N, …, 4).

        Returns:
            Boxes of the same shape, and the share of the area of each that is left, shape (N, …).
        """
        corners = [self.points(corner) for corner in boxes.split(2, -1)]
        whole = torch.cat([torch.minimum(*corners), torch.maximum(*corners)], -1)
        low, high = _like(self.low, corners[0]), _like(self.high, corners[0])
        cut = torch.cat([corner.clamp(min=low, max=high) for corner in whole.split(2, -1)], -1)
        whole, cut_size = (each[..., 2:] - each[..., :2] for each in (whole, cut))
        # Of a box without extent: whether it lies in the view.
        inside = (corners[0] >= low) & (corners[0] <= high)
        share = torch.where(whole > 1e-6, cut_size / whole.clamp(min=1e-6), inside.float())
        return cut, share.prod(-1)


def _like(value: Tensor, points: Tensor) -> Tensor:
    """A value of each image, shape (N, 2), that broadcasts with points (N, …, 2)."""
    return value.reshape(len(value), *[1] * (points.dim() - 2), 2)


def image_key(sample: DetDataSample) -> str:
    """The name of a sample's image in a cache: its id and, if it has one, the name of its file.

    Raises:
        ConfigError: The sample has no id.
    """
    meta: dict[str, Any] = sample.metainfo
    if 'img_id' not in meta:
        raise ConfigError(
            "the samples have no img_id, by which a cached teacher finds an image; add 'img_id' to meta_keys "
            'of PackDetInputs in train_dataloader'
        )
    file = os.path.basename(meta.get('img_path') or '')
    return f'{meta["img_id"]} {file}'.rstrip()
