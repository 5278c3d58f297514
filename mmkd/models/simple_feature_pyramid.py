"""Feature pyramids for backbones whose output has one resolution."""

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
    """Layer normalisation over the channels of each position of a map, shape (N, C, H, W)."""

    def forward(self, maps: Tensor) -> Tensor:
        # In memory as other maps are: mmcv's RoIAlign takes whatever it gets for contiguous.
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Li et al.: Exploring Plain Vision Transformer Backbones for Object Detection, ECCV 2022.

    arXiv 2203.16527, sec. 3: each level is made of the backbone's last map alone, by transposed
    convolutions, nothing or pooling, and then a 1x1 and a 3x3 convolution. With the default ``strides``
    and ``num_outs`` its levels are those of FPN, as heads and students expect them.

    Args:
        in_channels: Channels of the backbone's map.
        out_channels: Channels of each level.
        in_stride: Pixels of the image from one position of the backbone's map to the next.
        strides: The same of the levels; each ``in_stride`` times a power of two.
        num_outs: Number of levels; those beyond ``strides`` take every second position of the one before.
        init_cfg: As of every module of MMEngine.

    Raises:
        ConfigError: A stride that is out of reach.
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
            raise ConfigError(f'neck.num_outs={num_outs}, but there are {len(strides)} strides')
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
        """Make the levels.

        Args:
            inputs: The backbone's outputs; the last is used, a map of shape (N, in_channels, H, W) or a
                pair of such a map and a class token.

        Returns:
            Levels in the order of their strides, shape (N, out_channels, H', W') each.
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
    """The same of a map that holds the class token at every position. Kept as a negative result.

    A class token describes what is in the image, but not where: all that such a map has of positions is how
    far from the padded border they are, which zeros around 3x3 convolutions give away. Detectors can
    hardly learn from it, whatever the backbone; :class:`SimpleFeaturePyramid` on the patches of the same
    backbone is the remedy. Arguments as there; the backbone needs ``output_class_token=True``.
    """

    def forward(self, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        """As :meth:`SimpleFeaturePyramid.forward`, of pairs of map and class token.

        Raises:
            ConfigError: The backbone gives no class token.
        """
        if isinstance(inputs[-1], Tensor):
            raise ConfigError(
                'neck: ClassTokenPyramid needs class tokens; set backbone.output_class_token=True'
            )
        map_, token = inputs[-1]
        return self._pyramid(token[:, :, None, None].expand_as(map_))


def _resample(channels: int, in_stride: int, stride: int) -> list[nn.Module]:
    steps = math.log2(in_stride / stride)
    if steps != int(steps) or channels % 2 ** max(0, int(steps)):
        raise ConfigError(
            f'neck.strides: {stride} is not {in_stride} times a power of two, or too fine for {channels} '
            f'channels'
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
