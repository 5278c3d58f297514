"""From values per row or position to one value per batch, also where ranks share the batch.

Images of one batch are padded to the largest. The ``mask`` of a loss on maps, bool of shape (N, H, W), is
True at the positions that show the image; None means all. With it, the loss of an image is what it would
be without padding, and an image without a valid position contributes 0.
"""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from ..errors import ConfigError

Mask = Tensor | None


def weighted_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over all values, each entry of the first dimension counted by its weight.

    Args:
        values: Shape (N, …).
        weight: Shape (N,), non-negative; None for all alike.

    Returns:
        A scalar. 0 (with a gradient of 0) where there is nothing to average or all weights are 0.
    """
    if values.numel() == 0:
        return values.sum()
    if weight is None:
        return values.mean()
    values = values.flatten(1).mean(1) if values.dim() > 1 else values
    # Entries of weight 0 may hold anything, infinities included; they must not turn the sum to NaN.
    values = values.where(weight > 0, values.new_zeros(()))
    weight = weight.float()  # a sum in bfloat16 has three digits
    total = weight.sum()
    return (values * weight).sum() / total.where(total > 0, 1.0)


@torch.no_grad()
def rank_weights(totals: Tensor) -> Tensor:
    """What this rank's means are multiplied by, so that the mean over ranks is the mean over all entries.

    DDP averages gradients over ranks. A mean over entries that are few on one rank and many on another
    needs the number of entries (or the sum of weights) of the average rank as its divisor, as mmdet
    takes for ``avg_factor``. Every rank must call this, also one without any entry.

    Args:
        totals: Numbers of entries or sums of weights on this rank, shape (means,).

    Returns:
        ``totals`` over their mean over ranks, shape (means,).
    """
    mean = totals.clone()
    all_reduce(mean, op='mean')
    return totals / mean.where(mean > 0, 1.0)


def fill_invalid(mask: Mask, *maps: Tensor, value: float = 0.0) -> list[Tensor]:
    """Each map in float32, with a value at the positions outside the mask, whatever they held.

    Maps have the shape (N, C, H, W); without a mask, any.
    """
    maps = tuple(side.float() for side in maps)
    return [side if mask is None else side.masked_fill(~mask[:, None], value) for side in maps]


def masked_mean(values: Tensor, mask: Mask) -> Tensor:
    """Mean over the valid positions, of values (N, C, H, W) that are 0 at all others, shape (N, C).

    Without a mask, all values count alike, and they are returned as they are.
    """
    if mask is None:
        return values
    return values.sum((2, 3)) / mask.sum((1, 2)).clamp(min=1)[:, None]


def require_maps(loss: nn.Module, value: Tensor) -> None:
    """Raise a ConfigError unless a value is feature maps, shape (N, C, H, W)."""
    if value.dim() != 4:
        raise ConfigError(
            f'{type(loss).__name__} compares feature maps of shape (N, C, H, W), got '
            f'{tuple(value.shape)}; record a backbone, neck or one of their layers, with '
            f"align=dict(type='FeatureAlignment')"
        )
