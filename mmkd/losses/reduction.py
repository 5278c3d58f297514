"""From one value per row or image to one value per batch, also where ranks share the batch."""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from torch import Tensor


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
def shares_of_ranks(totals: Tensor) -> Tensor:
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
