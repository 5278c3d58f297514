"""One batch of images, normalised for student and teacher."""

from __future__ import annotations

import torch
from mmdet.structures import SampleList
from mmengine.model import BaseDataPreprocessor
from torch import Tensor


def renormalize(
    inputs: Tensor,
    data_samples: SampleList,
    given: BaseDataPreprocessor,
    wanted: BaseDataPreprocessor,
) -> Tensor:
    """Bring a batch from one preprocessor's normalisation to another's.

    Args:
        inputs: Batch as ``given`` made it, shape (N, 3, H, W).
        data_samples: Their ``img_shape`` tells image from padding.
        given: The preprocessor the batch went through.
        wanted: The preprocessor whose output is asked for.

    Returns:
        ``inputs`` itself where both normalise alike, else a new tensor of the same shape.
    """
    flip = _swaps_channels(given) != _swaps_channels(wanted)
    mean, std = _statistics(given, inputs)
    new_mean, new_std = _statistics(wanted, inputs)
    if not flip and torch.equal(mean, new_mean) and torch.equal(std, new_std):
        return inputs
    pixels = inputs * std + mean
    if flip:
        pixels = pixels.flip(1)
    outputs = (pixels - new_mean) / new_std
    # Padding is a constant after normalisation, not a pixel value to be normalised.
    pad = float(getattr(wanted, 'pad_value', 0))
    for output, sample in zip(outputs, data_samples or (), strict=False):
        height, width = sample.metainfo.get('img_shape', output.shape[-2:])[:2]
        output[:, height:] = pad
        output[:, :, width:] = pad
    return outputs


def _swaps_channels(preprocessor: BaseDataPreprocessor) -> bool:
    return bool(getattr(preprocessor, '_channel_conversion', False))


def _statistics(preprocessor: BaseDataPreprocessor, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (1, like.shape[1], 1, 1)
    if not getattr(preprocessor, '_enable_normalize', False):
        return like.new_zeros(shape), like.new_ones(shape)
    mean, std = (
        stat.to(like).reshape(1, -1, 1, 1) for stat in (preprocessor.mean, preprocessor.std)
    )
    return mean.expand(shape), std.expand(shape)
