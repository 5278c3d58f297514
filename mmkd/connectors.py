"""Trainable adapters between the models and a loss, used while distilling only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
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
            as FPN levels may, or one per level.
        out_channels: Channels of the teacher's maps, likewise.
        bias: Whether the convolution adds one.
        standardize: Whether :class:`StandardizeConnector` follows.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int | Sequence[int],
        bias: bool = True,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.standardize = StandardizeConnector() if standardize else nn.Identity()
        self.shared = isinstance(in_channels, int) and isinstance(out_channels, int)
        lengths = [len(each) for each in (in_channels, out_channels) if not isinstance(each, int)]
        count = lengths[0] if lengths else 1
        ins = [in_channels] * count if isinstance(in_channels, int) else list(in_channels)
        outs = [out_channels] * count if isinstance(out_channels, int) else list(out_channels)
        if len(ins) != len(outs):
            raise ConfigError(
                f'connector: in_channels has {len(ins)} levels and out_channels {len(outs)}'
            )
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 1, bias=bias) for i, o in zip(ins, outs, strict=True)
        )

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
            outputs.append(self.standardize(conv(level)))
        return outputs[0] if single else outputs


@MODELS.register_module()
class StandardizeConnector(nn.Module):
    """Brings each channel to mean 0 and variance 1 over the batch; it has no weights.

    As ``teacher_connector``, with the same behind the student's convolution, maps are compared by shape and
    not by size, as the distillation of RTMDet in MMYOLO 0.6 does.
    """

    def forward(self, features: Any) -> Any:
        """A map of shape (N, C, H, W), or a list or tuple of them; returns the like."""
        if not isinstance(features, Tensor):
            return [self(level) for level in features]
        return F.batch_norm(features, None, None, training=True)


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
    """Generates the teacher's maps from the student's with positions masked out at random.

    Yang et al.: Masked Generative Distillation, ECCV 2022 (arXiv 2205.01529): two 3x3 convolutions
    with a ReLU between them have to fill in what was masked, from what is around it. The paper's loss
    is ``MSE(reduction='sum')``.

    Args:
        in_channels: Channels of the student's maps.
        out_channels: Channels of the teacher's maps. A 1x1 convolution comes first where they differ.
        levels: Number of levels, each with convolutions of its own; None for any number of levels that
            share them.
        mask_ratio: Share of positions that are masked. The paper has 0.65 for one-stage and 0.45 for
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
            raise ConfigError(f'connector: mask_ratio must be in [0, 1), got {mask_ratio}')
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
        single, levels = _levels(features, self.levels, self.in_channels)
        outputs = []
        for index, level in enumerate(levels):
            own = 0 if self.levels is None else index
            aligned = self.align[own](level)
            shown = torch.rand_like(aligned[:, :1]) >= self.mask_ratio
            outputs.append(self.generation[own](aligned * shown))
        return outputs[0] if single else outputs


@MODELS.register_module()
class GlobalContextConnector(nn.Module):
    """Adds the context of the whole map to each of its positions, as a global context block does.

    The context is the mean over positions weighted by a softmax of a 1x1 convolution; two 1x1
    convolutions with layer normalisation and ReLU between them transform it. Cao et al.: GCNet, ICCV
    Workshops 2019 (arXiv 1904.11492), fig. 4d. The global part of FGD (Yang et al., CVPR 2022, arXiv
    2111.11837, eq. 11) compares maps behind such blocks, one for the student as ``connector`` and one for the
    teacher as ``teacher_connector``. The last convolution starts at 0, so that at first the maps
    themselves are compared.

    Args:
        channels: Channels of the maps.
        levels: Number of levels, each with a block of its own; None for any number of levels that share
            one.
        ratio: By how much the first convolution narrows the context.
    """

    def __init__(self, channels: int, levels: int | None = None, ratio: int = 2) -> None:
        super().__init__()
        if ratio < 1 or channels < ratio:
            raise ConfigError(
                f'connector: ratio={ratio} must lie between 1 and channels={channels}'
            )
        self.channels, self.levels = channels, levels
        self.attention = nn.ModuleList()
        self.transform = nn.ModuleList()
        for _ in range(levels or 1):
            attention = nn.Conv2d(channels, 1, 1)
            nn.init.kaiming_normal_(attention.weight, nonlinearity='relu')
            nn.init.constant_(attention.get_parameter('bias'), 0)
            last = nn.Conv2d(channels // ratio, channels, 1)
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.get_parameter('bias'), 0)
            self.attention.append(attention)
            self.transform.append(
                nn.Sequential(
                    nn.Conv2d(channels, channels // ratio, 1),
                    nn.LayerNorm([channels // ratio, 1, 1]),
                    nn.ReLU(inplace=True),
                    last,
                )
            )

    def forward(self, features: Any) -> Any:
        """A map of shape (N, C, H, W), or a list or tuple of them; returns the like."""
        single, levels = _levels(features, self.levels, self.channels)
        outputs = []
        for index, level in enumerate(levels):
            own = 0 if self.levels is None else index
            share = self.attention[own](level).flatten(2).softmax(-1)
            context = torch.einsum('ncx,nox->nc', level.flatten(2), share)[:, :, None, None]
            outputs.append(level + self.transform[own](context))
        return outputs[0] if single else outputs


def _levels(features: Any, count: int | None, channels: int) -> tuple[bool, list[Tensor]]:
    """Whether there was a single map, and the maps as a list of the expected number and channels."""
    single = isinstance(features, Tensor)
    levels = [features] if single else list(features)
    if count not in (None, len(levels)):
        raise ConfigError(f'connector: made for {count} levels, got {len(levels)}')
    for index, level in enumerate(levels):
        if level.dim() != 4 or level.shape[1] != channels:
            raise ConfigError(
                f'connector: level {index} has shape {tuple(level.shape)}, but is to have {channels} '
                f'channels'
            )
    return single, levels
