"""The output of a dense head, read at the levels that both heads have."""

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
# Positions of the outputs that do not depend on the head's mode.
CLASSES, QUALITY = 0, 2


@dataclass(frozen=True)
class DenseOutput:
    """An output of a head at the levels that are compared.

    Args:
        value: The recorded output: the head's, or one of its parts, level by level.
        owner: ``student`` or ``teacher``, for messages.
        head: The head that computed it.
        levels: Indices of its levels that are compared.
    """

    value: Any
    owner: str
    head: Detector
    levels: Sequence[int]

    def maps(self, position: int) -> list[Tensor]:
        """One of the head's outputs, per compared level, shape (N, numbers, H, W).

        Args:
            position: Of the output, unless :attr:`value` is one of the outputs itself.

        Raises:
            ConfigError: The recorded output is not one map per level.
        """
        value = self.value
        if isinstance(value, (tuple, list)) and value and isinstance(value[0], (tuple, list)):
            value = value[position]
        strides = strides_of(self.head.prior_generator)
        fits = isinstance(value, (tuple, list)) and len(value) == len(strides)
        if not fits or not all(isinstance(v, Tensor) and v.dim() == 4 for v in value):
            raise ConfigError(
                f"the {self.owner}'s recorded output is not one map per level of its {len(strides)}; record "
                f'bbox_head'
            )
        return [value[level] for level in self.levels]

    def rows(self, position: int, width: int) -> Tensor:
        """The same, one row per prior, shape (priors of all levels and images, width).

        Raises:
            ConfigError: Channels are no multiple of ``width``.
        """
        rows = []
        for level in self.maps(position):
            if level.shape[1] % width:
                raise ConfigError(
                    f"the {self.owner}'s recorded output has {level.shape[1]} channels, no multiple of "
                    f'{width}; record bbox_head'
                )
            rows.append(level.permute(0, 2, 3, 1).reshape(-1, width))
        return torch.cat(rows).float()

    def class_logits(self) -> Tensor:
        """Class scores before the activation, shape (priors, classes), one more with a softmax."""
        return class_logits(self.head, self.rows(CLASSES, self.head.cls_out_channels))

    def quality(self) -> Tensor:
        """Centerness, IoU or objectness before a sigmoid, shape (priors, 1)."""
        return self.rows(QUALITY, width=1)

    def box_maps(self) -> list[Tensor]:
        """The box output, per compared level, shape (N, numbers, H, W)."""
        return self.maps(dense_head(self.head).box_in_training if self.head.training else 1)

    def boxes(self) -> list[Tensor]:
        """Decoded boxes, per compared level: x1, y1, x2, y2 in pixels, shape (N, priors, 4)."""
        return [
            predicted_boxes(self.head, level, values)
            for level, values in zip(self.levels, self.box_maps(), strict=True)
        ]
