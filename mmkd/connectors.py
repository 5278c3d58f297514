"""Trainable adapters on the student's side, used while distilling only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from .errors import ConfigError


@MODELS.register_module()
class ConvConnector(nn.Module):
    """A 1x1 convolution that brings feature maps to the teacher's number of channels.

    Romero et al.: FitNets, ICLR 2015 (arXiv 1412.6550), sec. 2.2, regress the hint with a convolution
    of this kind.

    Args:
        in_channels: Channels of the student's maps: a number, for levels that share one convolution
            as FPN levels may, or one a level.
        out_channels: Channels of the teacher's maps, likewise.
    """

    def __init__(self, in_channels: int | Sequence[int], out_channels: int | Sequence[int]) -> None:
        super().__init__()
        self.shared = isinstance(in_channels, int) and isinstance(out_channels, int)
        if self.shared:
            in_channels = [in_channels]
        count = len(out_channels if isinstance(in_channels, int) else in_channels)
        ins = [in_channels] * count if isinstance(in_channels, int) else list(in_channels)
        outs = [out_channels] * count if isinstance(out_channels, int) else list(out_channels)
        if len(ins) != len(outs):
            raise ConfigError(
                f'connector: in_channels has {len(ins)} levels and out_channels {len(outs)}'
            )
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in zip(ins, outs, strict=True))

    def forward(self, features: Any) -> Any:
        """A map of shape (N, C, H, W), or a list or tuple of them; returns the like."""
        single = isinstance(features, Tensor)
        levels = [features] if single else list(features)
        convs = list(self.convs) * len(levels) if self.shared else list(self.convs)
        if len(convs) != len(levels):
            raise ConfigError(f'connector: made for {len(convs)} levels, got {len(levels)}')
        outputs = []
        for index, (conv, level) in enumerate(zip(convs, levels, strict=True)):
            if level.shape[1] != conv.in_channels:
                raise ConfigError(
                    f'connector: level {index} has shape {tuple(level.shape)}, but in_channels is '
                    f'{conv.in_channels}'
                )
            outputs.append(conv(level))
        return outputs[0] if single else outputs


@MODELS.register_module()
class LinearConnector(nn.Module):
    """A linear map of tokens or query embeddings to the teacher's width.

    What :class:`ConvConnector` is for maps, for outputs with their channels last: those of a
    transformer's encoder and decoder.

    Args:
        in_channels: Width of the student's tokens.
        out_channels: Width of the teacher's.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, tokens: Any) -> Tensor:
        """Shape (…, in_channels); returns (…, out_channels)."""
        wanted = self.linear.in_features
        if not isinstance(tokens, Tensor) or tokens.shape[-1] != wanted:
            kind = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ConfigError(
                f'connector: expected one tensor of {wanted} channels last, got {kind}'
            )
        return self.linear(tokens)


@MODELS.register_module()
class MaskedGenerationConnector(nn.Module):
    """Generates the teacher's maps from the student's with places masked out at random.

    Yang et al.: Masked Generative Distillation, ECCV 2022 (arXiv 2205.01529): two 3x3 convolutions
    with a ReLU between them have to fill in what was masked, from what is around it. With ``MSE``. The
    paper's loss is the sum of squares, not their mean: its weight of 2e-5 is 2e-5 times the
    number of values in an image's map here.

    Args:
        in_channels: Channels of the student's maps.
        out_channels: Channels of the teacher's maps. A 1x1 convolution comes first where they differ.
        levels: Number of levels, each with convolutions of its own; None for any number of levels that
            share them.
        mask_ratio: Share of places that are masked. The paper has 0.65 for one-stage and 0.45 for
            two-stage detectors.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        levels: int | None = None,
        mask_ratio: float = 0.65,
    ) -> None:
        super().__init__()
        if not 0 <= mask_ratio < 1:
            raise ConfigError(f'connector: mask_ratio={mask_ratio} lies not in [0, 1)')
        self.in_channels, self.levels, self.mask_ratio = in_channels, levels, mask_ratio
        self.align = nn.ModuleList()
        self.generation = nn.ModuleList()
        for _ in range(levels or 1):
            same = in_channels == out_channels
            self.align.append(nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1))
            self.generation.append(
                nn.Sequential(
                    nn.Conv2d(out_channels, out_channels, 3, padding=1),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(out_channels, out_channels, 3, padding=1),
                )
            )

    def forward(self, features: Any) -> Any:
        """A map of shape (N, C, H, W), or a list or tuple of them; returns the like."""
        single = isinstance(features, Tensor)
        levels = [features] if single else list(features)
        if self.levels not in (None, len(levels)):
            raise ConfigError(f'connector: made for {self.levels} levels, got {len(levels)}')
        outputs = []
        for index, level in enumerate(levels):
            if level.dim() != 4 or level.shape[1] != self.in_channels:
                raise ConfigError(
                    f'connector: level {index} has shape {tuple(level.shape)}, but in_channels is '
                    f'{self.in_channels}'
                )
            own = 0 if self.levels is None else index
            aligned = self.align[own](level)
            shown = torch.rand_like(aligned[:, :1]) >= self.mask_ratio
            outputs.append(self.generation[own](aligned * shown))
        return outputs[0] if single else outputs
