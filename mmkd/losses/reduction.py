"""Reduce values per row or position to one value per batch, on one rank or several.

The images of a batch are padded to the largest. The ``mask`` of a loss on maps is bool of shape (N, H, W)
and True at the positions that show the image; None means all positions. With a mask, padding does not
change the loss of an image. An image without a valid position contributes 0.
"""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from ..errors import ConfigError

Mask = Tensor | None


def weighted_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Weighted mean over the first dimension; the mean over all other dimensions comes first.

    Args:
        values: Shape (N, …).
        weight: Shape (N,), non-negative; None for equal weights.

    Returns:
        A scalar. It is 0, with a gradient of 0, if there are no values or if all weights are 0.
    """
    if values.numel() == 0:
        return values.sum()
    if weight is None:
        return values.mean()
    values = values.flatten(1).mean(1) if values.dim() > 1 else values
    # Entries of weight 0 may be infinite, and 0 times infinity is NaN.
    values = values.where(weight > 0, values.new_zeros(()))
    weight = weight.float()  # a sum in bfloat16 is exact to about three digits only
    total = weight.sum()
    return (values * weight).sum() / total.where(total > 0, 1.0)


@torch.no_grad()
def rank_weights(totals: Tensor) -> Tensor:
    """Factors for this rank's means that turn the mean over ranks into the mean over all entries.

    DDP averages gradients over ranks, and ranks may have different numbers of entries. Each sum must
    therefore be divided by the mean number of entries (or sum of weights) per rank, as mmdet does with
    ``avg_factor``. All ranks must call this function, including those without entries.

    Args:
        totals: Number of entries, or sum of weights, of each mean on this rank, shape (means,).

    Returns:
        ``totals`` divided by their mean over ranks, shape (means,).
    """
    mean = totals.clone()
    all_reduce(mean, op='mean')
    return totals / mean.where(mean > 0, 1.0)


def fill_invalid(mask: Mask, *maps: Tensor, value: float = 0.0) -> list[Tensor]:
    """Return each map in float32, with ``value`` at the positions where the mask is False.

    Maps have the shape (N, C, H, W). Without a mask, tensors of any shape are only converted.
    """
    maps = tuple(side.float() for side in maps)
    return [side if mask is None else side.masked_fill(~mask[:, None], value) for side in maps]


def masked_mean(values: Tensor, mask: Mask) -> Tensor:
    """Mean over the valid positions, shape (N, C).

    The values, shape (N, C, H, W), must be 0 at all other positions. Without a mask, the values are
    returned unchanged.
    """
    if mask is None:
        return values
    return values.sum((2, 3)) / mask.sum((1, 2)).clamp(min=1)[:, None]


def require_maps(loss: nn.Module, value: Tensor) -> None:
    """Raise a ConfigError unless the value is a batch of feature maps, shape (N, C, H, W)."""
    if value.dim() != 4:
        raise ConfigError(
            f'{type(loss).__name__}: values must be feature maps of shape (N, C, H, W), got '
            f'{tuple(value.shape)}; record a backbone, neck or one of their layers, with '
            f"align=dict(type='FeatureAlignment')"
        )
