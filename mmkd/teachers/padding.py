"""Padding that a teacher needs and a batch of the student lacks.

Necks that double a map and join it with the next (PAFPN of YOLOX and RTMDet) take only sizes that all strides
divide. Such a detector sets ``pad_size_divisor`` of its data preprocessor; the student's may be smaller.
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
    """Pad a batch at the right and at the bottom as a preprocessor does.

    Args:
        inputs: Images in its normalisation, shape (N, C, H, W).
        data_samples: Their meta information.
        preprocessor: The teacher's.

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
    """What is recorded of padded images, without the positions that only their padding has.

    Args:
        value: Tensors, nested. Maps are those of shape (N, C, H, W) whose stride, a power of two, is the
            same in both directions; others are passed on.
        images: Number of images.
        padded: Height and width of the padded images.
        size: Height and width of the images before.
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
