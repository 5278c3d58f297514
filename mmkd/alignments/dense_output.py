"""The output of a dense head at the levels that both heads have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..families.dense_heads import class_logits, dense_head, predicted_boxes
from ..recorder import Source
from ..types import Detector
from .base import strides_of

HEAD = Source('bbox_head')
# Indices of the outputs that are the same in training and evaluation mode.
CLASSES, QUALITY = 0, 2


@dataclass(frozen=True)
class DenseOutput:
    """The output of a head at the compared levels.

    Args:
        value: The recorded output: all outputs of the head, or one of them, with one map per level.
        owner: ``student`` or ``teacher``, for messages.
        head: The head that computed the output.
        levels: Indices of the compared levels.
    """

    value: Any
    owner: str
    head: Detector
    levels: Sequence[int]

    def maps(self, position: int) -> list[Tensor]:
        """Return one of the head's outputs, one map per compared level, shape (N, numbers, H, W).

        Args:
            position: Index of the output. Not used if :attr:`value` is a single output.

        Raises:
            ConfigError: The recorded output does not have one map per level.
        """
        value = self.value
        if isinstance(value, (tuple, list)) and value and isinstance(value[0], (tuple, list)):
            value = value[position]
        strides = strides_of(self.head.prior_generator)
        fits = isinstance(value, (tuple, list)) and len(value) == len(strides)
        if not fits or not all(isinstance(v, Tensor) and v.dim() == 4 for v in value):
            raise ConfigError(
                f'{self.owner}: the recorded output must have one map per level ({len(strides)} levels); '
                f'record bbox_head'
            )
        return [value[level] for level in self.levels]

    def rows(self, position: int, width: int) -> Tensor:
        """Return one of the head's outputs as rows, shape (priors of all levels and images, width).

        Raises:
            ConfigError: The number of channels is not a multiple of ``width``.
        """
        rows = []
        for level in self.maps(position):
            if level.shape[1] % width:
                raise ConfigError(
                    f'{self.owner}: the recorded output must have a multiple of {width} channels, got '
                    f'{level.shape[1]}; record bbox_head'
                )
            rows.append(level.permute(0, 2, 3, 1).reshape(-1, width))
        return torch.cat(rows).float()

    def class_logits(self) -> Tensor:
        """Return class scores before the activation, shape (priors, classes), or classes + 1 with softmax."""
        return class_logits(self.head, self.rows(CLASSES, self.head.cls_out_channels))

    def quality(self) -> Tensor:
        """Return centerness, IoU or objectness before a sigmoid, shape (priors, 1)."""
        return self.rows(QUALITY, width=1)

    def box_maps(self) -> list[Tensor]:
        """Return the box output, one map per compared level, shape (N, numbers, H, W)."""
        return self.maps(dense_head(self.head).box_in_training if self.head.training else 1)

    def boxes(self) -> list[Tensor]:
        """Return decoded boxes per compared level: x1, y1, x2, y2 in pixels, shape (N, priors, 4)."""
        return [
            predicted_boxes(self.head, level, values)
            for level, values in zip(self.levels, self.box_maps(), strict=True)
        ]
