"""Trainable adapters between a model's output and a loss. They are used only during distillation."""

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
    """A 1x1 convolution that maps feature maps to the teacher's number of channels.

    FitNets regresses its hint with such a convolution (Romero et al., ICLR 2015, arXiv 1412.6550, sec.
    2.2).

    Args:
        in_channels: Channels of the student's maps. A number: all levels share one convolution, as for
            FPN. A list: one number and one convolution per level.
        out_channels: Channels of the teacher's maps, in the same form.
        bias: Whether the convolution has a bias.
        standardize: Whether a :class:`StandardizeConnector` follows.

    Examples:
        >>> import torch
        >>> from mmdet.registry import MODELS
        >>> import mmkd
        >>> connector = MODELS.build(dict(type='ConvConnector', in_channels=96, out_channels=256))
        >>> [level.shape for level in connector([torch.rand(2, 96, 16, 16), torch.rand(2, 96, 8, 8)])]
        [torch.Size([2, 256, 16, 16]), torch.Size([2, 256, 8, 8])]
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
                f'connector: in_channels and out_channels must have the same number of levels, got '
                f'{len(ins)} and {len(outs)}'
            )
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 1, bias=bias) for i, o in zip(ins, outs, strict=True)
        )

    def forward(self, features: Any) -> Any:
        """Convert a map of shape (N, C, H, W), or a list or tuple of maps; returns a map or a list."""
        single = isinstance(features, Tensor)
        levels = [features] if single else list(features)
        convs = list(self.convs) * len(levels) if self.shared else list(self.convs)
        if len(convs) != len(levels):
            raise ConfigError(
                f'connector: the recorded output must have {len(convs)} levels, got {len(levels)}'
            )
        outputs = []
        for index, (conv, level) in enumerate(zip(convs, levels, strict=True)):
            if level.shape[1] != conv.in_channels:
                raise ConfigError(
                    f'connector: in_channels must be {level.shape[1]} for level {index} of shape '
                    f'{tuple(level.shape)}, got {conv.in_channels}'
                )
            outputs.append(self.standardize(conv(level)))
        return outputs[0] if single else outputs


@MODELS.register_module()
class StandardizeConnector(nn.Module):
    """Standardises each channel to mean 0 and variance 1 over the batch. It has no weights.

    Use it as ``teacher_connector`` and, with ``ConvConnector(standardize=True)``, after the student's
    convolution. The loss then does not depend on the scale of the maps, as in the distillation of RTMDet
    in MMYOLO 0.6.

    Examples:
        >>> import torch
        >>> from mmdet.registry import MODELS
        >>> import mmkd
        >>> connector = MODELS.build(dict(type='StandardizeConnector'))
        >>> maps = connector(5 + 3 * torch.randn(2, 16, 8, 8))
        >>> abs(maps.mean().item()) < 1e-4, round(maps.std().item(), 1)
        (True, 1.0)
    """

    def forward(self, features: Any) -> Any:
        """Convert a map of shape (N, C, H, W), or a list or tuple of maps; returns a map or a list."""
        if not isinstance(features, Tensor):
            return [self(level) for level in features]
        return F.batch_norm(features, None, None, training=True)


@MODELS.register_module()
class LinearConnector(nn.Module):
    """A linear layer that maps tokens or query embeddings to the teacher's width.

    It is for outputs with channels last, such as those of a transformer's encoder and decoder. For maps,
    use :class:`ConvConnector`.

    Args:
        in_channels: Width of the student's tokens.
        out_channels: Width of the teacher's tokens.

    Examples:
        >>> import torch
        >>> from mmdet.registry import MODELS
        >>> import mmkd
        >>> connector = MODELS.build(dict(type='LinearConnector', in_channels=128, out_channels=256))
        >>> connector(torch.rand(6, 2, 100, 128)).shape  # decoder layers, images, queries, width
        torch.Size([6, 2, 100, 256])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, tokens: Any) -> Tensor:
        """Convert tokens of shape (…, in_channels) to shape (…, out_channels)."""
        wanted = self.linear.in_features
        if not isinstance(tokens, Tensor) or tokens.shape[-1] != wanted:
            kind = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ConfigError(
                f'connector: the recorded output must be one tensor with {wanted} channels last, got {kind}'
            )
        return self.linear(tokens)


@MODELS.register_module()
class MaskedGenerationConnector(nn.Module):
    """Masks random positions of the student's maps and generates the teacher's maps from the rest (MGD).

    Yang et al., "Masked Generative Distillation", ECCV 2022 (arXiv 2205.01529). Two 3x3 convolutions with
    a ReLU between them restore the masked positions from their surroundings. The paper's loss is
    ``MSE(reduction='sum')``.

    Args:
        in_channels: Channels of the student's maps.
        out_channels: Channels of the teacher's maps. If they differ, a 1x1 convolution comes first.
        levels: Number of levels, each with its own convolutions. None: all levels share them.
        mask_ratio: Share of positions that are masked. The paper uses 0.65 for one-stage and 0.45 for
            two-stage detectors.

    Examples:
        >>> import torch
        >>> from mmdet.registry import MODELS
        >>> import mmkd
        >>> connector = dict(type='MaskedGenerationConnector', in_channels=96, out_channels=256)
        >>> MODELS.build(connector)(torch.rand(2, 96, 16, 16)).shape
        torch.Size([2, 256, 16, 16])
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
        """Convert a map of shape (N, C, H, W), or a list or tuple of maps; returns a map or a list."""
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
    """A global context block: adds the context of the whole map to each position.

    The context is the weighted mean over positions; the weights are the softmax of a 1x1 convolution. Two
    1x1 convolutions with layer normalisation and ReLU between them transform it. Cao et al., "GCNet", ICCV
    Workshops 2019 (arXiv 1904.11492), fig. 4d.

    The global part of FGD (Yang et al., CVPR 2022, arXiv 2111.11837, eq. 11) compares maps after such
    blocks: one as ``connector`` of the student, one as ``teacher_connector``. The last convolution is
    initialised to 0, so training starts with a comparison of the maps themselves.

    Args:
        channels: Channels of the maps.
        levels: Number of levels, each with its own block. None: all levels share one block.
        ratio: Reduction factor of the channels in the first convolution.

    Examples:
        >>> import torch
        >>> from mmdet.registry import MODELS
        >>> import mmkd
        >>> connector = MODELS.build(dict(type='GlobalContextConnector', channels=64))
        >>> maps = torch.rand(2, 64, 16, 16)
        >>> bool((connector(maps) == maps).all())  # at first it adds 0
        True
    """

    def __init__(self, channels: int, levels: int | None = None, ratio: int = 2) -> None:
        super().__init__()
        if ratio < 1 or channels < ratio:
            raise ConfigError(
                f'connector: ratio must be between 1 and channels={channels}, got {ratio}'
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
        """Convert a map of shape (N, C, H, W), or a list or tuple of maps; returns a map or a list."""
        single, levels = _levels(features, self.levels, self.channels)
        outputs = []
        for index, level in enumerate(levels):
            own = 0 if self.levels is None else index
            share = self.attention[own](level).flatten(2).softmax(-1)
            context = torch.einsum('ncx,nox->nc', level.flatten(2), share)[:, :, None, None]
            outputs.append(level + self.transform[own](context))
        return outputs[0] if single else outputs


def _levels(features: Any, count: int | None, channels: int) -> tuple[bool, list[Tensor]]:
    """Whether the output is a single map, and the maps as a list with checked number and channels."""
    single = isinstance(features, Tensor)
    levels = [features] if single else list(features)
    if count not in (None, len(levels)):
        raise ConfigError(f'connector: levels must be {len(levels)}, as recorded, got {count}')
    for index, level in enumerate(levels):
        if level.dim() != 4 or level.shape[1] != channels:
            raise ConfigError(
                f'connector: level {index} must be a map with {channels} channels, got shape '
                f'{tuple(level.shape)}'
            )
    return single, levels
