"""One batch of images at another resolution."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from mmdet.structures import DetDataSample, SampleList
from torch import Tensor

from ..errors import ConfigError


def check_scale(scale: Any, owner: str) -> float:
    """The scale of a teacher's images, as its config gives it.

    Raises:
        ConfigError: It is no positive number.
    """
    if (
        isinstance(scale, bool)
        or not isinstance(scale, (int, float))
        or not 0 < scale < float('inf')
    ):
        raise ConfigError(
            f'{owner}.scale={scale!r} is no number above 0; 2 shows the teacher images of twice the '
            f"student's width and height"
        )
    return float(scale)


def resize(
    inputs: Tensor, data_samples: SampleList, scale: float
) -> tuple[Tensor, SampleList, tuple[float, float]]:
    """Resize a batch, padding included, bilinearly; where it shrinks, smoothed against aliasing.

    Args:
        inputs: Images, shape (N, 3, H, W).
        data_samples: Their meta information.
        scale: Factor of width and height, which are rounded to whole pixels.

    Returns:
        The images, their meta information without labels, and the factors of width and height that
        rounding left.
    """
    height, width = inputs.shape[2:]
    size = [max(1, round(length * scale)) for length in (height, width)]
    images = F.interpolate(inputs, size, mode='bilinear', align_corners=False, antialias=scale < 1)
    factors = (size[1] / width, size[0] / height)
    return images, [_resized(sample, factors) for sample in data_samples], factors


def _resized(sample: DetDataSample, factors: tuple[float, float]) -> DetDataSample:
    """A sample with the meta information of the resized image, and nothing else."""
    meta = dict(sample.metainfo)
    for key in ('img_shape', 'pad_shape', 'batch_input_shape'):
        if key in meta:
            height, width = meta[key][:2]
            meta[key] = (round(height * factors[1]), round(width * factors[0]))
    if 'scale_factor' in meta:
        across, down = meta['scale_factor'][:2]
        meta['scale_factor'] = (across * factors[0], down * factors[1])
    return DetDataSample(metainfo=meta)
