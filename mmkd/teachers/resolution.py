"""Resize a batch of images for a teacher with another resolution."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from mmdet.structures import DetDataSample, SampleList
from torch import Tensor

from ..errors import ConfigError


def check_scale(scale: Any, owner: str) -> float:
    """Return the scale of a teacher's images as a float.

    Raises:
        ConfigError: The scale is not a positive number.
    """
    if (
        isinstance(scale, bool)
        or not isinstance(scale, (int, float))
        or not 0 < scale < float('inf')
    ):
        raise ConfigError(
            f'{owner}.scale: must be a number above 0, got {scale!r}; with 2 the teacher sees images with '
            f"twice the student's width and height"
        )
    return float(scale)


def resize(
    inputs: Tensor, data_samples: SampleList, scale: float
) -> tuple[Tensor, SampleList, tuple[float, float]]:
    """Resize a batch bilinearly, padding included, with antialiasing if it shrinks.

    Args:
        inputs: Images, shape (N, 3, H, W).
        data_samples: The meta information of the images.
        scale: Factor of width and height. The new width and height are rounded to whole pixels.

    Returns:
        The images, their meta information without labels, and the exact factors of width and height
        after rounding.
    """
    height, width = inputs.shape[2:]
    size = [max(1, round(length * scale)) for length in (height, width)]
    images = F.interpolate(inputs, size, mode='bilinear', align_corners=False, antialias=scale < 1)
    factors = (size[1] / width, size[0] / height)
    return images, [_resized(sample, factors) for sample in data_samples], factors


def _resized(sample: DetDataSample, factors: tuple[float, float]) -> DetDataSample:
    """A sample with only the meta information of the resized image."""
    meta = dict(sample.metainfo)
    for key in ('img_shape', 'pad_shape', 'batch_input_shape'):
        if key in meta:
            height, width = meta[key][:2]
            meta[key] = (round(height * factors[1]), round(width * factors[0]))
    if 'scale_factor' in meta:
        horizontal, vertical = meta['scale_factor'][:2]
        meta['scale_factor'] = (horizontal * factors[0], vertical * factors[1])
    return DetDataSample(metainfo=meta)
