"""Distinguish the positions of a map that show the image from padding.

The images of a batch are padded to one size, at the right and at the bottom. A position belongs to the image
if its first pixel does. The valid positions of an image then do not depend on the rest of the batch.
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
    """Return the positions of a batch's maps that show the images.

    Args:
        data_samples: The meta information of the batch.
        size: Height and width of the maps.
        device: The device of the result.

    Returns:
        Bool, shape (N, *size), False on padding. None if no position is padding.
    """
    counts = [map_geometry(sample, size)[1] for sample in data_samples]
    if all(count == tuple(size) for count in counts):
        return None
    # A non-blocking copy: torch.tensor(…, device=device) would wait for the device.
    rows, columns = torch.tensor(counts).to(device, non_blocking=True)[:, :, None].unbind(1)
    inside = [
        torch.arange(cells, device=device) < count
        for cells, count in zip(size, (rows, columns), strict=True)
    ]
    return inside[0][:, :, None] & inside[1][:, None, :]


def intersect_masks(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the intersection of two masks. None means all positions."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def map_geometry(
    sample: DetDataSample, size: Sequence[int]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return the stride of a map and the number of positions that show the image, in height and width."""
    shape = sample.metainfo['img_shape'][:2]
    padded = sample.metainfo.get('batch_input_shape', shape)
    strides = tuple(position_stride(*of) for of in zip(padded, size, strict=True))
    counts = (math.ceil(length / stride) for length, stride in zip(shape, strides, strict=True))
    return strides, tuple(min(*of) for of in zip(counts, size, strict=True))


def position_stride(length: int, cells: int) -> float:
    """Return the number of pixels per position along one axis of a map.

    Args:
        length: Number of pixels of the padded image.
        cells: Number of positions of the map.
    """
    for rounded in (math.ceil, math.floor):  # most layers round the number of positions up
        for power in range(16):
            if rounded(length / 2**power) == cells:
                return 2**power
    return length / cells


def size_divisor(preprocessor: BaseDataPreprocessor) -> int:
    """Return the number of which height and width of a preprocessor's batches are multiples."""
    return int(getattr(preprocessor, 'pad_size_divisor', 1) or 1)
