"""Store feature maps of a teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..alignments.features import levels_of
from ..errors import ConfigError
from ..families import Family
from ..recorder import Source
from .contents import Batch, Content, ReadOutput, Restored, to_half
from .views import View


class MapContent(Content):
    """Maps of backbone and neck, without padding.

    Maps are large, and less exact for other views than boxes. The map of a flipped image is approximately
    the flipped map; the map of a resized image differs more. Stored maps are sampled bilinearly at the
    positions of the new view. Positions outside the stored view are not compared
    (:attr:`mmkd.alignments.Pair.mask`).
    """

    kind = 'maps'
    is_large = True

    @classmethod
    def can_store(cls, source: Source, family: Family) -> bool:
        """Return whether the source is an output of backbone or neck."""
        if source.capture != 'output':
            return False
        try:
            return family.part_of(source) == 'features'
        except ConfigError:
            return False

    def extract(
        self, read: ReadOutput, shared: dict[str, Any], image: int, view: View
    ) -> dict[str, Tensor]:
        """Return the maps of an image, shape (C, H, W), and their strides; see :meth:`Content.extract`."""
        height, width = shared['padded']
        kept, single = {}, []
        for number, source in enumerate(self.sources):
            value = read(source)
            if isinstance(value, Tensor):
                single.append(number)
            stride = 0
            for index, level in enumerate(levels_of(value, 'teacher')):
                if level.dim() != 4:
                    raise ConfigError(
                        f"'{source}' cannot be stored in a cache: its output must be feature maps "
                        f'(N, C, H, W), got shape {tuple(level.shape)}; record another module'
                    )
                strides = _strides((height, width), tuple(level.shape[2:]), 2 * stride)
                stride = max(strides)
                # The map of this image alone, without padding.
                own = [_cells(*of) for of in zip(view.size[::-1], strides, strict=True)]
                kept[f'maps.{number}.{index}'] = to_half(
                    level[image, :, : own[0], : own[1]], source
                )
                kept[f'strides.{number}.{index}'] = torch.tensor(strides)
        self.settings['single'] = single
        return kept

    def restore(self, batch: Batch) -> Restored:
        """Sample the stored maps at the positions of the batch's views; see :meth:`Content.restore`."""
        values, masks = {}, {}
        for number, source in enumerate(self.sources):
            count = sum(name.startswith(f'maps.{number}.') for name in batch.fields[0])
            found = [self._restore(batch, f'{number}.{index}') for index in range(count)]
            levels = [level for level, _ in found]
            values[source] = levels[0] if number in self.settings['single'] else tuple(levels)
            if any(mask is not None for _, mask in found):
                masks[source] = [
                    level.new_ones(len(level), 1, *level.shape[2:], dtype=torch.bool)
                    if mask is None
                    else mask
                    for level, mask in found
                ]
        return Restored(values, {}, masks)

    def _restore(self, batch: Batch, name: str) -> tuple[Tensor, Tensor | None]:
        # A map of one cell is compatible with several strides, so images may have stored different ones:
        # use the largest.
        of_images = torch.stack([fields[f'strides.{name}'] for fields in batch.fields])
        strides: list[int] = of_images.amax(0).tolist()
        size = [_cells(*of) for of in zip(batch.padded, strides, strict=True)]
        maps = [
            fields[f'maps.{name}'].to(batch.device, non_blocking=True) for fields in batch.fields
        ]
        if batch.transform.is_identity and all(list(each.shape[1:]) == size for each in maps):
            return torch.stack(maps).float(), None
        found = [_sample(batch, i, each.float(), size, strides) for i, each in enumerate(maps)]
        levels, masks = (torch.stack(each) for each in zip(*found, strict=True))
        return levels, masks


def _sample(
    batch: Batch, image: int, old: Tensor, size: list[int], strides: list[int]
) -> tuple[Tensor, Tensor]:
    """Sample the map of one image at the cells of its new view.

    Args:
        batch: The batch.
        image: Index of the image in the batch.
        old: The map in the stored view, shape (C, H, W).
        size: Height and width of the new map.
        strides: Pixels per cell, vertical and horizontal.

    Returns:
        The new map, shape (C, *size), and the cells that show the image, shape (1, *size).
    """
    transform, axes, inside = batch.transform, [], []
    for axis, length, stride in ((1, size[0], strides[0]), (0, size[1], strides[1])):
        pixels = (torch.arange(length) + 0.5) * stride
        before = (pixels - transform.offset[image, axis]) / transform.scale[image, axis]
        # A cell is valid if it shows a part of the image and a part of the stored view.
        half = stride / 2
        shown = pixels < transform.size[image, axis] + half
        start = -half / transform.scale[image, axis].abs()
        seen = (before > start) & (before < old.shape[2 - axis] * stride)
        inside.append(shown & seen)
        # grid_sample expects coordinates from -1 to 1 across the cells of the stored map.
        axes.append(2 * before / (old.shape[2 - axis] * stride) - 1)
    grid = torch.stack(torch.meshgrid(*axes, indexing='ij')[::-1], -1)
    level = F.grid_sample(
        old[None],
        grid[None].to(old.device, non_blocking=True),
        padding_mode='border',
        align_corners=False,
    )
    mask = (inside[0][:, None] & inside[1])[None].to(old.device, non_blocking=True)
    return level[0] * mask, mask


def _strides(size: Sequence[float], cells: Sequence[int], likely: int) -> list[int]:
    """Pixels per cell of a map, vertical and horizontal.

    Args:
        size: Height and width of the images.
        cells: Height and width of the map.
        likely: Twice the stride of the previous level. It is used if several strides are possible, as for
            a map of one cell.
    """
    fits = [
        stride
        for stride in (1 << power for power in range(16))
        if all(_cells(length, stride) == count for length, count in zip(size, cells, strict=True))
    ]
    if fits:
        return [max(fits[0], min(likely, fits[-1]))] * 2
    # Not all layers round the number of cells up.
    return [
        2 ** max(0, round(math.log2(length / count)))
        for length, count in zip(size, cells, strict=True)
    ]


def _cells(length: float, stride: int) -> int:
    return max(1, math.ceil(round(length, 3) / stride))
