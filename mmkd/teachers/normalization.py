"""Convert a batch of images from the student's normalisation to the teacher's."""

from __future__ import annotations

import torch
from mmdet.structures import SampleList
from mmengine.model import BaseDataPreprocessor
from torch import Tensor


class Renormalization:
    """Converts a batch from one preprocessor's normalisation to another's.

    The constructor compares the two preprocessors once. A comparison per step would make the host wait for
    the device.

    Args:
        source: The preprocessor that normalised the batches.
        target: The preprocessor to convert to.
    """

    def __init__(self, source: BaseDataPreprocessor, target: BaseDataPreprocessor) -> None:
        self.source, self.target = source, target
        self.flips_channels = _swaps_channels(source) != _swaps_channels(target)
        #: Whether batches have to be converted.
        self.is_needed = (
            self.flips_channels
            or pad_value(source) != pad_value(target)
            or any(
                # The shapes differ if one of the two is for grayscale images.
                ours.shape != theirs.shape or not bool((ours.cpu() == theirs.cpu()).all())
                for ours, theirs in zip(_statistics(source), _statistics(target), strict=True)
            )
        )

    def __call__(self, inputs: Tensor, data_samples: SampleList) -> Tensor:
        """Convert a batch.

        Args:
            inputs: Output of ``source``, shape (N, 3, H, W).
            data_samples: Samples; ``img_shape`` separates the image from its padding.

        Returns:
            ``inputs`` itself if both preprocessors normalise alike, else a new tensor of the same shape.
        """
        if not self.is_needed:
            return inputs
        mean, std = (each.to(inputs) for each in _statistics(self.source))
        pixels = inputs * std + mean
        if self.flips_channels:
            pixels = pixels.flip(1)
        mean, std = (each.to(inputs) for each in _statistics(self.target))
        outputs = (pixels - mean) / std
        # Padding is added after normalisation, so it is a constant and not a normalised pixel.
        pad = pad_value(self.target)
        for output, sample in zip(outputs, data_samples or (), strict=False):
            height, width = sample.metainfo.get('img_shape', output.shape[-2:])[:2]
            output[:, height:] = pad
            output[:, :, width:] = pad
        return outputs


def pad_value(preprocessor: BaseDataPreprocessor) -> float:
    """Return the value with which a preprocessor pads normalised images."""
    return float(getattr(preprocessor, 'pad_value', 0))


def _swaps_channels(preprocessor: BaseDataPreprocessor) -> bool:
    """Whether a preprocessor converts BGR to RGB or back, under the names of mmdet, mmpretrain and mmseg."""
    names = ('_channel_conversion', 'to_rgb', 'channel_conversion')
    return any(bool(getattr(preprocessor, name, False)) for name in names)


def _statistics(preprocessor: BaseDataPreprocessor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each of shape (1, 3 or 1, 1, 1)."""
    if not getattr(preprocessor, '_enable_normalize', False):
        return torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    return preprocessor.mean.reshape(1, -1, 1, 1), preprocessor.std.reshape(1, -1, 1, 1)
