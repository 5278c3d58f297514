"""Feature pyramids for backbones with a single output resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..errors import ConfigError
from .vision_transformer import EPS


class LayerNorm2d(nn.LayerNorm):
    """Layer normalization over the channels of each position of a feature map, shape (N, C, H, W)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalized maps of the same shape, contiguous in memory."""
        # mmcv's RoIAlign assumes contiguous maps without checking.
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Simple feature pyramid of ViTDet.

    Li et al.: Exploring Plain Vision Transformer Backbones for Object Detection, ECCV 2022 (arXiv
    2203.16527), sec. 3. Each level is computed from the backbone's last feature map: transposed
    convolutions, identity or max pooling, then a 1x1 and a 3x3 convolution. With the default ``strides``
    and ``num_outs`` the levels have the strides of FPN.

    Args:
        in_channels: Channels of the backbone's feature map.
        out_channels: Channels of each level.
        in_stride: Stride of the backbone's feature map, in pixels of the image.
        strides: Strides of the levels; each must be ``in_stride`` times a power of two.
        num_outs: Number of levels. Each level after those of ``strides`` is the previous level,
            subsampled by two.
        init_cfg: Initialization config of MMEngine.

    Raises:
        ConfigError: A stride is not ``in_stride`` times a power of two, or too small for the channels.

    Examples:
        >>> import torch
        >>> from mmkd.models import SimpleFeaturePyramid
        >>> neck = SimpleFeaturePyramid(in_channels=32, out_channels=16)
        >>> [tuple(level.shape) for level in neck([torch.rand(1, 32, 4, 4)])]
        [(1, 16, 16, 16), (1, 16, 8, 8), (1, 16, 4, 4), (1, 16, 2, 2), (1, 16, 1, 1)]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        in_stride: int = 16,
        strides: Sequence[int] = (4, 8, 16, 32),
        num_outs: int = 5,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_outs < len(strides):
            raise ConfigError(
                f'neck.num_outs: must be at least {len(strides)}, the number of strides, got {num_outs}'
            )
        self.num_outs = num_outs
        self.levels = nn.ModuleList(
            nn.Sequential(*_resample(in_channels, in_stride, stride)) for stride in strides
        )
        self.convs = nn.ModuleList()
        for stride in strides:
            channels = in_channels >> max(0, int(math.log2(in_stride / stride)))
            self.convs.append(
                nn.Sequential(
                    nn.Conv2d(channels, out_channels, 1, bias=False),
                    LayerNorm2d(out_channels, eps=EPS),
                    nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                    LayerNorm2d(out_channels, eps=EPS),
                )
            )

    def forward(self, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            inputs: Outputs of the backbone. Only the last is used: a map of shape (N, in_channels, H, W),
                or a pair of such a map and a class token.

        Returns:
            Levels in the order of their strides, each of shape (N, out_channels, H', W').
        """
        last = inputs[-1]
        return self._pyramid(last if isinstance(last, Tensor) else last[0])

    def _pyramid(self, map_: Tensor) -> tuple[Tensor, ...]:
        outs = [conv(level(map_)) for level, conv in zip(self.levels, self.convs, strict=True)]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


@MODELS.register_module()
class ClassTokenPyramid(SimpleFeaturePyramid):
    """Simple feature pyramid of a map with the class token at every position; kept as a negative result.

    A class token describes the content of an image but not the positions of objects. The only position
    information in this map is the distance to the zero padding of the 3x3 convolutions. Detectors can
    hardly learn from it, with any backbone. Use :class:`SimpleFeaturePyramid` on the patches of the same
    backbone instead. The arguments are the same; the backbone needs ``output_class_token=True``.

    Examples:
        >>> import torch
        >>> from mmkd.models import ClassTokenPyramid
        >>> neck = ClassTokenPyramid(in_channels=32, out_channels=16)
        >>> levels = neck([(torch.rand(1, 32, 4, 4), torch.rand(1, 32))])
        >>> len(levels), tuple(levels[0].shape)
        (5, (1, 16, 16, 16))
    """

    def forward(self, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        """Same as :meth:`SimpleFeaturePyramid.forward`; ``inputs`` are pairs of map and class token.

        Raises:
            ConfigError: The backbone returns no class token.
        """
        if isinstance(inputs[-1], Tensor):
            raise ConfigError(
                'neck: ClassTokenPyramid needs class tokens, but the backbone returns none; set '
                'backbone.output_class_token=True'
            )
        map_, token = inputs[-1]
        return self._pyramid(token[:, :, None, None].expand_as(map_))


def _resample(channels: int, in_stride: int, stride: int) -> list[nn.Module]:
    steps = math.log2(in_stride / stride)
    if steps != int(steps):
        raise ConfigError(f'neck.strides: must be {in_stride} times a power of two, got {stride}')
    divisor = 2 ** max(0, int(steps))  # each transposed convolution halves the channels
    if channels % divisor:
        raise ConfigError(
            f'neck.in_channels: must be a multiple of {divisor} for stride {stride}, got {channels}; use '
            f'larger strides'
        )
    if steps < 0:
        return [nn.MaxPool2d(2 ** int(-steps))]
    layers: list[nn.Module] = []
    for step in range(int(steps)):
        if step:
            layers += [LayerNorm2d(channels, eps=EPS), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
    return layers
