"""Trainable adapters on the student's side, used while distilling only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
