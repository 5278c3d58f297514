"""The positions of a map that show the image, and those that are padding.

Images of a batch are padded to one size, at the right and at the bottom. A position belongs to the image if
the first of its pixels does; then the valid positions of an image do not depend on the rest of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseDataPreprocessor
from torch import Tensor


def valid_positions(
    data_samples: Sequence[DetDataSample], size: Sequence[int], device: torch.device
) -> Tensor | None:
    """The positions of the maps of a batch that show the images.

    Args:
        data_samples: The batch's meta information.
        size: Height and width of the maps.
        device: The device of the result.

    Returns:
        Bool, shape (N, *size), False on padding; None where no position is padding.
    """
    counts = [map_geometry(sample, size)[1] for sample in data_samples]
    if all(count == tuple(size) for count in counts):
        return None
    # Without waiting for the device, as a copy within torch.tensor would.
    rows, columns = torch.tensor(counts).to(device, non_blocking=True)[:, :, None].unbind(1)
    inside = [
        torch.arange(cells, device=device) < count
        for cells, count in zip(size, (rows, columns), strict=True)
    ]
    return inside[0][:, :, None] & inside[1][:, None, :]


def intersect_masks(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Where both of two masks are True; None, all positions, where both are."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def map_geometry(
    sample: DetDataSample, size: Sequence[int]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Pixels per position of a map, and how many positions show the image; each in height and width."""
    shape = sample.metainfo['img_shape'][:2]
    padded = sample.metainfo.get('batch_input_shape', shape)
    strides = tuple(position_stride(*of) for of in zip(padded, size, strict=True))
    counts = (math.ceil(length / stride) for length, stride in zip(shape, strides, strict=True))
    return strides, tuple(min(*of) for of in zip(counts, size, strict=True))


def position_stride(length: int, cells: int) -> float:
    """Pixels per position along one axis of a map.

    Args:
        length: Pixels of the padded image.
        cells: Positions of the map.
    """
    for rounded in (math.ceil, math.floor):  # most layers round the number of positions up
        for power in range(16):
            if rounded(length / 2**power) == cells:
                return 2**power
    return length / cells


def size_divisor(preprocessor: BaseDataPreprocessor) -> int:
    """What height and width of its batches are multiples of."""
    return int(getattr(preprocessor, 'pad_size_divisor', 1) or 1)
