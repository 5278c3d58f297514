"""Small networks with the names and the arithmetic of those whose weights are published.

Written plainly and without anything from mmkd, so that converted weights can be judged by outputs.
Widths and depths are tiny; everything random follows torch's seed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, DEPTH = 16, 2, 3
ARCH = dict(embed_dims=WIDTH, num_heads=HEADS, num_layers=DEPTH)  # the same for mmkd's backbone


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH, eps=1e-6)


def shake(module: nn.Module) -> nn.Module:
    """Make every parameter and statistic random, norms, biases and zeros too."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if 'var' in name else torch.randn_like(value))
            if value.dim() > 1:
                value.div_(value[0].numel() ** 0.5)
    return module.eval()


class PatchEmbed(nn.Module):
    def __init__(self, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, patch, patch)


class Attention(nn.Module):
    """Over tokens (L, C); with relative positions over a square of them."""

    def __init__(self, rel_pos: int = 0) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        if rel_pos:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * rel_pos - 1, WIDTH // HEADS))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * rel_pos - 1, WIDTH // HEADS))
        self.side = rel_pos

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.qkv(tokens).split(WIDTH, 1)
        heads = []
        for q, k, v in zip(*(part.split(WIDTH // HEADS, 1) for part in parts), strict=True):
            scores = q @ k.T / (WIDTH // HEADS) ** 0.5
            if self.side:
                scores = scores + self.distances(q)
            heads.append(scores.softmax(1) @ v)
        return self.proj(torch.cat(heads, 1))

    def distances(self, q: Tensor) -> Tensor:
        bias = q.new_zeros(len(q), len(q))
        for i in range(len(q)):
            for j in range(len(q)):
                down, right = i // self.side - j // self.side, i % self.side - j % self.side
                bias[i, j] = q[i] @ self.rel_pos_h[down + self.side - 1]
                bias[i, j] += q[i] @ self.rel_pos_w[right + self.side - 1]
        return bias


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(WIDTH))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """A layer on a map of tokens (H, W, C) in windows, or on tokens (L, C)."""

    def __init__(self, layer_scale: bool = False, rel_pos: int = 0) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm(), Attention(rel_pos), norm(), Mlp()
        if layer_scale:
            self.ls1, self.ls2 = LayerScale(), LayerScale()
        self.layer_scale = layer_scale

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.norm1(tokens)
        y = self.windows(y) if y.dim() == 3 else self.attn(y)
        tokens = tokens + (y * self.ls1.gamma if self.layer_scale else y)
        y = self.mlp(self.norm2(tokens))
        return tokens + (y * self.ls2.gamma if self.layer_scale else y)

    def windows(self, tokens: Tensor) -> Tensor:
        """Of the side that the relative positions have; what a last one lacks is zeros."""
        side, (height, width, _) = self.attn.side, tokens.shape
        padded = F.pad(tokens, (0, 0, 0, -width % side, 0, -height % side))
        out = torch.zeros_like(padded)
        for top in range(0, height, side):
            for left in range(0, width, side):
                window = padded[top : top + side, left : left + side].flatten(0, 1)
                out[top : top + side, left : left + side] = self.attn(window).unflatten(
                    0, (side, -1)
                )
        return out[:height, :width]


class OriginalViT(nn.Module):
    """DINO's; with layer scale and registers DINOv2's; with ``fc_norm`` what MAE fine-tunes.

    ``forward`` gives the patches of one image after the last norm, if it has one, shape (L, C).
    """

    def __init__(
        self,
        side: int,
        patch: int,
        registers: int = 0,
        layer_scale: bool = False,
        last: str = 'norm',
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, WIDTH))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, WIDTH))
        self.patch_embed = PatchEmbed(patch)
        self.blocks = nn.ModuleList(Block(layer_scale) for _ in range(DEPTH))
        setattr(self, last, norm())
        self.registers, self.last = registers, last
        shake(self)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embed.proj(image)[0].flatten(1).T
        tokens = torch.cat([self.cls_token[0], patches]) + self.pos_embed[0]
        if self.registers:
            tokens = torch.cat([tokens[:1], self.register_tokens[0], tokens[1:]])
        for block in self.blocks:
            tokens = block(tokens)
        tokens = tokens[1 + self.registers :]
        return self.norm(tokens) if self.last == 'norm' else tokens


class ChannelNorm(nn.Module):
    """Layer normalisation of a map's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        centred = maps - maps.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * scaled + self.bias[:, None, None]


class NormedConv(nn.Conv2d):
    """detectron2's convolution: its normalisation is a part of it."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2, bias=False)
        self.norm = ChannelNorm(outputs)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(super().forward(maps))


class OriginalViTDet(nn.Module):
    """Backbone and pyramid under the names of detectron2's detector, and a few of its heads' weights.

    Attention is in windows of ``window`` patches, in the last layer over the whole image of ``side``.
    """

    def __init__(self, side: int, patch: int, window: int, channels: int = 8) -> None:
        super().__init__()
        net = nn.Module()
        net.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, WIDTH))
        net.patch_embed = PatchEmbed(patch)
        sides = [window] * (DEPTH - 1) + [side]
        net.blocks = nn.ModuleList(Block(rel_pos=of) for of in sides)

        def level(width: int, *first: nn.Module) -> nn.Sequential:
            last = NormedConv(width, channels, 1), NormedConv(channels, channels, 3)
            return nn.Sequential(*first, *last)

        half, quarter = WIDTH // 2, WIDTH // 4
        up = nn.ConvTranspose2d
        first = up(WIDTH, half, 2, 2), ChannelNorm(half), nn.GELU(), up(half, quarter, 2, 2)
        self.backbone = nn.Module()
        self.backbone.net = net
        self.backbone.simfp_2 = level(quarter, *first)
        self.backbone.simfp_3 = level(half, up(WIDTH, half, 2, 2))
        self.backbone.simfp_4 = level(WIDTH)
        self.backbone.simfp_5 = level(WIDTH, nn.MaxPool2d(2, 2))
        self.proposal_generator = nn.Module()
        self.proposal_generator.rpn_head = nn.Conv2d(channels, 3, 1)
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = nn.Linear(channels, 5)
        self.side = side
        shake(self)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The backbone's map (C, H, W) of one image, and the five levels."""
        net = self.backbone.net
        tokens = net.patch_embed.proj(image)[0].permute(1, 2, 0)
        tokens = tokens + net.pos_embed[0, 1:].unflatten(0, (self.side, -1))
        for block in net.blocks:
            tokens = block(tokens)
        map_ = tokens.permute(2, 0, 1)
        levels = [getattr(self.backbone, f'simfp_{stage}')(map_[None])[0] for stage in (2, 3, 4, 5)]
        return map_, [*levels, levels[-1][:, ::2, ::2]]


def original_mobilenet_v2(width: float = 0.25) -> nn.ModuleDict:
    """torchvision's MobileNetV2 under its names; ``features`` is a sequence to run."""

    def channels(count: float) -> int:  # multiples of 8, never less than nine tenths
        rounded = max(8, int(count * width + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * count * width else rounded

    def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list:
        layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        return [layer, nn.BatchNorm2d(outputs)]

    class Inverted(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
            super().__init__()
            inner = inputs * expand
            first = [nn.Sequential(*conv(inputs, inner, 1), nn.ReLU6())] if expand > 1 else []
            depthwise = nn.Sequential(*conv(inner, inner, 3, stride, groups=inner), nn.ReLU6())
            self.conv = nn.Sequential(*first, depthwise, *conv(inner, outputs, 1))
            self.shortcut = stride == 1 and inputs == outputs

        def forward(self, maps: Tensor) -> Tensor:
            return maps + self.conv(maps) if self.shortcut else self.conv(maps)

    inputs = channels(32)
    features: list[nn.Module] = [nn.Sequential(*conv(3, inputs, 3, 2), nn.ReLU6())]
    # Sandler et al. 2018 (arXiv 1801.04381), table 2: expansion, channels, blocks, stride.
    table = '1 16 1 1  6 24 2 2  6 32 3 2  6 64 4 2  6 96 3 1  6 160 3 2  6 320 1 1'
    for row in table.split('  '):
        expand, outputs, count, stride = map(int, row.split())
        for block in range(count):
            features.append(Inverted(inputs, channels(outputs), 1 if block else stride, expand))
            inputs = channels(outputs)
    features.append(nn.Sequential(*conv(inputs, 1280, 1), nn.ReLU6()))
    classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 10))
    model = nn.ModuleDict(dict(features=nn.Sequential(*features), classifier=classifier))
    return shake(model)
