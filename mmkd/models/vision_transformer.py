"""The plain vision transformer (ViT) as a detector backbone, also as in DINO, DINOv2, MAE and ViTDet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.scale import LayerScale
from mmcv.cnn.bricks.transformer import FFN, PatchEmbed
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError, did_you_mean

# Dosovitskiy et al. 2021 (arXiv 2010.11929), table 1; tiny and small: Touvron et al. 2021
# (arXiv 2012.12877), table 1.
ARCHITECTURES = {
    'tiny': dict(embed_dims=192, num_layers=12, num_heads=3),
    'small': dict(embed_dims=384, num_layers=12, num_heads=6),
    'base': dict(embed_dims=768, num_layers=12, num_heads=12),
    'large': dict(embed_dims=1024, num_layers=24, num_heads=16),
}
EPS = 1e-6  # of layer normalization, the same in all published weights
Grid = tuple[int, int]


@MODELS.register_module()
class VisionTransformer(BaseModule):
    """A ViT for images of any size.

    Dosovitskiy et al.: An Image is Worth 16x16 Words, ICLR 2021 (arXiv 2010.11929).

    Parameters have the same names as in MMPretrain's transformers, so their checkpoints load. For other
    checkpoints use ``init_cfg=dict(type='ConvertedCheckpoint', …)``. The settings of published models:

    ==========================================  ===========================================================
    DINO (arXiv 2104.14294)                     ``arch='small'`` or ``'base'``, ``patch_size=16`` or ``8``
    DINOv2 (arXiv 2304.07193)                   ``patch_size=14, img_size=518, layer_scale=1.0``
    … with registers (arXiv 2309.16588)         and ``num_registers=4, antialias=True``
    ViTDet (arXiv 2203.16527)                   ``class_token=False, final_norm=False, window_size=14,
                                                global_layers=(2, 5, 8, 11), rel_pos_grid=64``
    ==========================================  ===========================================================

    Position embeddings are interpolated to the patch grid of each batch.

    Args:
        arch: One of ``tiny``, ``small``, ``base``, ``large``, or a dict with ``embed_dims``,
            ``num_layers``, ``num_heads`` and ``feedforward_channels`` (default: four times
            ``embed_dims``).
        img_size: Image size, in pixels, of the stored position embeddings.
        patch_size: Side of a patch in pixels.
        stride: Stride of the feature map, in pixels of the image; by default ``patch_size``. With another
            stride, images are first resized by ``patch_size / stride``. Example: ``stride=16`` with
            patches of 14 pixels results in strides that are powers of two.
        class_token: Use a class token.
        output_class_token: Return pairs of map and class token.
        num_registers: Number of register tokens.
        window_size: Side of the attention windows in patches; 0 for global attention.
        global_layers: Indices of layers with global attention in spite of ``window_size``.
        rel_pos_grid: Side, in patches, of the relative position table of layers with global attention.
            Layers with windows have a table of the window size. None for no relative positions.
        layer_scale: Initial value of the layer scale of residual branches; 0 for no layer scale.
        final_norm: Normalize the output of the last layer.
        drop_path_rate: Stochastic depth rate of the last layer; it rises linearly from 0 in the first.
        out_indices: Indices of the layers that are returned, counted from 0 or from the end.
        frozen_stages: -1 freezes nothing, 0 the embeddings, n also the first n layers. If all layers are
            frozen, so is the final norm.
        antialias: Antialias position embeddings when they are downsampled.
        with_cp: Use activation checkpointing: layers are recomputed in the backward pass to save memory.
        init_cfg: Initialization config of MMEngine.

    Raises:
        ConfigError: The settings are invalid or contradict each other.

    Examples:
        >>> import torch
        >>> from mmdet.registry import MODELS
        >>> arch = dict(embed_dims=32, num_layers=2, num_heads=2)
        >>> backbone = MODELS.build(dict(type='VisionTransformer', arch=arch, patch_size=16))
        >>> [tuple(out.shape) for out in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 32, 4, 6)]
    """

    def __init__(
        self,
        arch: str | dict[str, int] = 'base',
        img_size: int = 224,
        patch_size: int = 16,
        stride: int | None = None,
        class_token: bool = True,
        output_class_token: bool = False,
        num_registers: int = 0,
        window_size: int = 0,
        global_layers: Sequence[int] = (),
        rel_pos_grid: int | None = None,
        layer_scale: float = 0.0,
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        out_indices: int | Sequence[int] = -1,
        frozen_stages: int = -1,
        antialias: bool = False,
        with_cp: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        arch = _architecture(arch)
        self.embed_dims, self.num_layers = arch['embed_dims'], arch['num_layers']
        self.patch_size, self.stride = patch_size, stride or patch_size
        self.output_class_token = output_class_token
        self.num_extra_tokens = int(class_token) + num_registers
        if output_class_token and not class_token:
            raise ConfigError(
                'backbone.output_class_token: must be False with class_token=False, got True'
            )
        if self.num_extra_tokens and (window_size or rel_pos_grid):
            raise ConfigError(
                'backbone: class token and registers cannot be combined with windows or relative positions; '
                'set class_token=False and num_registers=0, or window_size=0 and rel_pos_grid=None'
            )
        if img_size % patch_size:
            raise ConfigError(
                f'backbone.img_size: must be a multiple of patch_size={patch_size}, got {img_size}'
            )
        outs = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        self.out_indices = self._layer_indices('out_indices', outs)
        whole = self._layer_indices('global_layers', global_layers)
        if not -1 <= frozen_stages <= self.num_layers:
            raise ConfigError(
                f'backbone.frozen_stages: must be from -1 to the number of layers, {self.num_layers}, got '
                f'{frozen_stages}'
            )
        self.frozen_stages = frozen_stages
        self.antialias, self.with_cp = antialias, with_cp

        self.patch_embed = PatchEmbed(
            embed_dims=self.embed_dims, kernel_size=patch_size, stride=patch_size
        )
        self.cls_token = self.register_tokens = None
        if class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        if num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, self.embed_dims))
        side = img_size // patch_size
        self.grid: Grid = (side, side)
        self.pos_embed = nn.Parameter(torch.zeros(1, int(class_token) + side**2, self.embed_dims))
        self.layers = nn.ModuleList()
        for index in range(self.num_layers):
            rate = drop_path_rate * index / max(1, self.num_layers - 1)
            window = 0 if index in whole else window_size
            self.layers.append(
                TransformerLayer(
                    self.embed_dims,
                    arch['num_heads'],
                    arch['feedforward_channels'],
                    window,
                    rel_pos_grid and (window or rel_pos_grid),
                    layer_scale,
                    rate,
                )
            )
        self.ln1 = nn.LayerNorm(self.embed_dims, eps=EPS) if final_norm else nn.Identity()
        self._initialize()
        for module in self._frozen():
            module.requires_grad_(False)

    def _layer_indices(self, key: str, indices: Sequence[int]) -> list[int]:
        for index in indices:
            if not -self.num_layers <= index < self.num_layers:
                raise ConfigError(
                    f'backbone.{key}: must be from {-self.num_layers} to {self.num_layers - 1}, got {index}'
                )
        return sorted(index % self.num_layers for index in indices)

    def _initialize(self) -> None:
        """Initialize as MAE, DINO and ViTDet do: truncated normal of deviation 0.02, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for tokens in (self.pos_embed, self.cls_token, self.register_tokens):
            if tokens is not None:
                nn.init.trunc_normal_(tokens, std=0.02)

    # ------------------------------------------------------------------ forward

    def forward(self, images: Tensor) -> tuple:
        """Compute the feature maps of images.

        Args:
            images: Shape (N, 3, H, W).

        Returns:
            One map per index of ``out_indices``, shape (N, embed_dims, ceil(H / stride),
            ceil(W / stride)). With ``output_class_token``, pairs of such a map and a class token of shape
            (N, embed_dims).
        """
        tokens, grid = self.patch_embed(self._fit(images))
        tokens = self._add_positions(tokens, grid)
        outputs = []
        for index, layer in enumerate(self.layers):
            if self.with_cp and tokens.requires_grad:
                tokens = checkpoint(layer, tokens, grid, use_reentrant=False)
            else:
                tokens = layer(tokens, grid)
            if index in self.out_indices:
                last = index == self.num_layers - 1
                outputs.append(self._output(self.ln1(tokens) if last else tokens, grid))
        return tuple(outputs)

    def _fit(self, images: Tensor) -> Tensor:
        """Pad and resize images so that one patch covers ``stride`` pixels of the original."""
        if self.stride == self.patch_size:
            return images
        counts = [math.ceil(length / self.stride) for length in images.shape[2:]]
        right, bottom = (
            count * self.stride - length
            for count, length in zip(counts[::-1], images.shape[:1:-1], strict=True)
        )
        images = F.pad(images, (0, right, 0, bottom))
        size = [count * self.patch_size for count in counts]
        return F.interpolate(
            images,
            size,
            mode='bilinear',
            align_corners=False,
            antialias=self.stride > self.patch_size,
        )

    def _add_positions(self, tokens: Tensor, grid: Grid) -> Tensor:
        split = self.pos_embed.shape[1] - math.prod(self.grid)
        own, positions = self.pos_embed[:, :split], self.pos_embed[:, split:]
        tokens = tokens + resize_positions(positions, self.grid, grid, self.antialias)
        count = len(tokens)
        extra = []
        if self.cls_token is not None:
            extra.append((self.cls_token + own).expand(count, -1, -1))
        if self.register_tokens is not None:  # they have no position
            extra.append(self.register_tokens.expand(count, -1, -1))
        return torch.cat([*extra, tokens], 1) if extra else tokens

    def _output(self, tokens: Tensor, grid: Grid) -> Any:
        # mmcv's RoIAlign assumes contiguous maps without checking.
        positions = tokens[:, self.num_extra_tokens :].transpose(1, 2).contiguous()
        positions = positions.reshape(len(tokens), self.embed_dims, *grid)
        return (positions, tokens[:, 0]) if self.output_class_token else positions

    # ------------------------------------------------------------------ training and loading

    def _frozen(self) -> list[nn.Module | nn.Parameter]:
        if self.frozen_stages < 0:
            return []
        tokens = (self.cls_token, self.register_tokens, self.pos_embed)
        parts = [self.patch_embed, *self.layers[: self.frozen_stages]]
        if self.frozen_stages == self.num_layers:
            parts.append(self.ln1)
        return [*parts, *(token for token in tokens if token is not None)]

    def train(self, mode: bool = True) -> VisionTransformer:
        """Set the training mode; frozen layers stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen():
            if isinstance(part, nn.Module):
                part.eval()  # disables stochastic depth
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The depth of a parameter, for layer-wise learning rates; same interface as in MMPretrain.

        Args:
            param_name: Name of the parameter.
            prefix: Prefix of the parameters of this backbone in that name.

        Returns:
            The depth: 0 for the embeddings, 1 for the first layer and so on, ``num_layers + 1`` for
            everything after the last layer. And the number of depths, ``num_layers + 2``.
        """
        depths = self.num_layers + 2
        if not param_name.startswith(prefix):
            return depths - 1, depths
        name = param_name[len(prefix) :].split('.')
        if name[0] in ('cls_token', 'register_tokens', 'pos_embed', 'patch_embed'):
            return 0, depths
        if name[0] == 'layers':
            return int(name[1]) + 1, depths
        return depths - 1, depths

    def _load_from_state_dict(self, state: dict, prefix: str, *args: Any) -> None:
        """Load weights; positions may be for another grid, four-dimensional, or include the class token."""
        log = MMLogger.get_current_instance()
        key = f'{prefix}pos_embed'
        if key in state and state[key].shape != self.pos_embed.shape:
            state[key] = self._fit_positions(state[key])
            log.info(f'{key}: interpolated to {self.grid[0]}x{self.grid[1]} patches')
        for name, own in self.named_parameters():
            key = prefix + name
            if name.split('.')[-1] in ('rel_pos_h', 'rel_pos_w') and key in state:
                if len(state[key]) != len(own):
                    state[key] = resize_relative(state[key], len(own))
                    log.info(f'{key}: interpolated to {len(own)} distances')
        super()._load_from_state_dict(state, prefix, *args)

    def _fit_positions(self, given: Tensor) -> Tensor:
        if given.dim() == 4:  # MMPretrain's ViTSAM
            given = given.flatten(1, 2)
        if given.dim() != 3 or given.shape[2] != self.embed_dims:
            return given
        wanted = self.pos_embed.shape[1] - math.prod(self.grid)
        count = given.shape[1]
        split = next((n for n in (0, 1) if math.isqrt(count - n) ** 2 == count - n), None)
        if split is None or split < wanted:
            return given  # the caller reports the shapes
        side = math.isqrt(count - split)
        own = given[:, split - wanted : split]
        positions = resize_positions(given[:, split:], (side, side), self.grid, self.antialias)
        return torch.cat([own, positions], 1)


class TransformerLayer(BaseModule):
    """A pre-norm transformer layer: attention and a feed-forward network with residual connections.

    Args:
        embed_dims: Channels of tokens.
        num_heads: Number of attention heads.
        feedforward_channels: Hidden channels of the feed-forward network.
        window_size: Side of the attention windows in patches; 0 for global attention.
        rel_pos_grid: Side of the relative position table in patches; None for no relative positions.
        layer_scale: Initial value of the layer scale; 0 for no layer scale.
        drop_path_rate: Probability that an image skips a residual branch.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        window_size: int = 0,
        rel_pos_grid: int | None = None,
        layer_scale: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.ln1 = nn.LayerNorm(embed_dims, eps=EPS)
        self.attn = Attention(embed_dims, num_heads, rel_pos_grid, layer_scale)
        self.drop_path = DropPath(drop_path_rate)
        self.ln2 = nn.LayerNorm(embed_dims, eps=EPS)
        self.ffn = FFN(
            embed_dims,
            feedforward_channels,
            act_cfg=dict(type='GELU'),
            dropout_layer=dict(type='DropPath', drop_prob=drop_path_rate),
            layer_scale_init_value=layer_scale,
        )

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens of shape (N, extra + height * width, C) for a (height, width) grid; same shape returned."""
        normed = self.ln1(tokens)
        if self.window_size:
            windows = to_windows(normed, grid, self.window_size)
            attended = self.attn(windows, (self.window_size, self.window_size))
            attended = from_windows(attended, grid, self.window_size)
        else:
            attended = self.attn(normed, grid)
        tokens = tokens + self.drop_path(attended)
        return self.ffn(self.ln2(tokens), identity=tokens)


class Attention(nn.Module):
    """Multi-head self-attention, with relative positions as in Li et al. 2022 (arXiv 2112.01526), sec. 4.1.

    The arguments are those of :class:`TransformerLayer`.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, rel_pos_grid: int | None, layer_scale: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.gamma1 = LayerScale(embed_dims, scale=layer_scale) if layer_scale else nn.Identity()
        self.rel_pos_h = self.rel_pos_w = None
        if rel_pos_grid:
            shape = (2 * rel_pos_grid - 1, embed_dims // num_heads)
            self.rel_pos_h = nn.Parameter(torch.zeros(shape))
            self.rel_pos_w = nn.Parameter(torch.zeros(shape))

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens of shape (N, L, C); ``grid`` (height, width) is used only for relative positions."""
        count, length, dims = tokens.shape
        q, k, v = (
            self.qkv(tokens).reshape(count, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        )
        bias = None if self.rel_pos_h is None else self._relative(q, grid)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        attended = attended.transpose(1, 2).reshape(count, length, dims)
        return self.gamma1(self.proj(attended))

    def _relative(self, q: Tensor, grid: Grid) -> Tensor:
        """The attention bias of relative positions, shape (N, heads, L, L)."""
        height, width = grid
        q = q.unflatten(2, grid)
        vertical, horizontal = (self.get_parameter(f'rel_pos_{axis}') for axis in 'hw')
        rows = torch.einsum('nahwc,hkc->nahwk', q, _between(vertical, height))
        columns = torch.einsum('nahwc,wkc->nahwk', q, _between(horizontal, width))
        bias = rows[..., :, None] + columns[..., None, :]
        return bias.flatten(4, 5).flatten(2, 3)


def _between(table: Tensor, length: int) -> Tensor:
    """The entry of a relative position table for each pair of positions, shape (length, length, C)."""
    table = resize_relative(table, 2 * length - 1)
    positions = torch.arange(length, device=table.device)
    return table[positions[:, None] - positions[None, :] + length - 1]


def resize_relative(table: Tensor, count: int) -> Tensor:
    """Interpolate a relative position table of shape (distances, C) to ``count`` distances."""
    if len(table) == count:
        return table
    return F.interpolate(table.T[None], count, mode='linear', align_corners=False)[0].T


def resize_positions(
    positions: Tensor, grid: Grid, wanted: Grid, antialias: bool = False
) -> Tensor:
    """Interpolate position embeddings bicubically.

    Args:
        positions: Shape (1, height * width, C).
        grid: Height and width of the grid.
        wanted: Height and width of the new grid.
        antialias: Antialias when downsampling.

    Returns:
        Shape (1, wanted height * wanted width, C).
    """
    if grid == wanted:
        return positions
    maps = positions.unflatten(1, grid).permute(0, 3, 1, 2)
    maps = F.interpolate(
        maps.float(), wanted, mode='bicubic', align_corners=False, antialias=antialias
    )
    return maps.flatten(2).transpose(1, 2).to(positions.dtype)


def to_windows(tokens: Tensor, grid: Grid, size: int) -> Tensor:
    """Split tokens of shape (N, height * width, C) into square windows, padded with zeros.

    Returns:
        Shape (N * windows, size * size, C).
    """
    rows, columns = (math.ceil(length / size) for length in grid)
    positions = tokens.unflatten(1, grid)
    positions = F.pad(positions, (0, 0, 0, columns * size - grid[1], 0, rows * size - grid[0]))
    positions = positions.unflatten(2, (columns, size)).unflatten(1, (rows, size))
    return positions.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(windows: Tensor, grid: Grid, size: int) -> Tensor:
    """Merge the windows of :func:`to_windows`; returns shape (N, height * width, C)."""
    rows, columns = (math.ceil(length / size) for length in grid)
    positions = windows.unflatten(1, (size, size)).unflatten(0, (-1, rows, columns)).transpose(2, 3)
    positions = positions.flatten(3, 4).flatten(1, 2)
    return positions[:, : grid[0], : grid[1]].flatten(1, 2)


def _architecture(arch: str | dict[str, int]) -> dict[str, int]:
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise ConfigError(
                f'backbone.arch: must be one of {", ".join(ARCHITECTURES)} or a dict, got {arch!r}'
                f'{did_you_mean(arch, ARCHITECTURES)}'
            )
        arch = ARCHITECTURES[arch]
    missing = {'embed_dims', 'num_layers', 'num_heads'} - arch.keys()
    if missing:
        raise ConfigError(f'backbone.arch: lacks {", ".join(sorted(missing))}; add it')
    if arch['embed_dims'] % arch['num_heads']:
        raise ConfigError(
            f'backbone.arch: embed_dims must be a multiple of num_heads={arch["num_heads"]}, got '
            f'{arch["embed_dims"]}'
        )
    return dict(feedforward_channels=4 * arch['embed_dims']) | arch
