"""Pad a batch for a teacher that needs larger multiples than the student.

Necks that upsample a map and concatenate it with the next (PAFPN of YOLOX and RTMDet) need image sizes that
are multiples of all strides. Such a detector sets ``pad_size_divisor`` of its data preprocessor. The
student's divisor may be smaller.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from mmdet.structures import DetDataSample, SampleList
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from ..alignments.padding import position_stride, size_divisor
from ..nested import map_tensors
from .normalization import pad_value

Size = tuple[int, int]


def pad(
    inputs: Tensor, data_samples: SampleList, preprocessor: BaseDataPreprocessor
) -> tuple[Tensor, SampleList]:
    """Pad a batch at the right and at the bottom to the size that a preprocessor requires.

    Args:
        inputs: Images in the teacher's normalisation, shape (N, C, H, W).
        data_samples: The meta information of the images.
        preprocessor: The teacher's data preprocessor.

    Returns:
        The images, and their meta information without labels.
    """
    divisor = size_divisor(preprocessor)
    height, width = inputs.shape[-2:]
    size = _multiple(height, divisor), _multiple(width, divisor)
    value = pad_value(preprocessor)
    images = F.pad(inputs, (0, size[1] - width, 0, size[0] - height), value=value)
    return images, [_padded(sample, size, divisor) for sample in data_samples]


def crop_maps(value: Any, images: int, padded: Size, size: Size) -> Any:
    """Crop recorded maps of padded images to the positions of the images without this padding.

    Args:
        value: Nested tensors. A tensor of shape (N, C, H, W) is a map if its stride is a power of two and
            the same in both directions. All other tensors are returned unchanged.
        images: Number of images.
        padded: Height and width of the padded images.
        size: Height and width of the images before padding.
    """

    def crop(tensor: Tensor) -> Tensor:
        if tensor.dim() != 4 or len(tensor) != images:
            return tensor
        cells = tensor.shape[2:]
        strides = {position_stride(*each) for each in zip(padded, cells, strict=True)}
        stride = strides.pop()
        if strides or stride != int(stride):
            return tensor
        height, width = (math.ceil(length / stride) for length in size)
        return tensor[:, :, :height, :width]

    return map_tensors(crop, value)


def _multiple(length: int, divisor: int) -> int:
    return math.ceil(length / divisor) * divisor


def _padded(sample: DetDataSample, size: Size, divisor: int) -> DetDataSample:
    height, width = sample.metainfo.get('img_shape', size)[:2]
    own = _multiple(height, divisor), _multiple(width, divisor)
    return DetDataSample(metainfo=dict(sample.metainfo, batch_input_shape=size, pad_shape=own))
