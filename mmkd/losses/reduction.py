"""From one value an entry to one value a batch."""

from __future__ import annotations

from torch import Tensor


def weighted_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over all entries, each entry of the first dimension counted by its weight.

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
    total = weight.sum()
    # Weightless entries may hold anything, infinities included; they must not turn the sum to nan.
    values = values.where(weight > 0, values.new_zeros(()))
    return (values * weight).sum() / total.clamp(min=1e-6)
