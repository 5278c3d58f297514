"""The way back from a loss to what was recorded, taken while it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..nested import map_tensors


def can_backpropagate_early() -> bool:
    """Whether there are gradients, and not such of float16 that vanish unless the loss is scaled."""
    half = any(
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        for device in ('cuda', 'cpu')
    )
    return torch.is_grad_enabled() and not half


def backpropagate_early(
    loss: Callable[[Any], Tensor], recorded: Any, weights: Iterable[nn.Parameter] = ()
) -> Tensor:
    """A loss of which only its gradient is held, not what lies between it and what was recorded.

    Training on it is the same: the gradient is computed at once, for a factor of 1, and multiplied by
    what the loss is multiplied with later.

    Args:
        loss: Gives a scalar for ``recorded``.
        recorded: What was recorded of the student; all that ``loss`` depends on and learns, but for
            ``weights``.
        weights: What else learns from it.

    Returns:
        The scalar.
    """
    originals: list[Tensor] = []
    leaves: list[Tensor] = []

    def leaf(value: Tensor) -> Tensor:
        if not value.requires_grad:
            return value
        originals.append(value)
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    value = loss(map_tensors(leaf, recorded))
    ends = [(weight, weight) for weight in weights if weight.requires_grad]
    ends += zip(originals, leaves, strict=True)
    if not ends or not value.requires_grad:
        return value
    gradients = torch.autograd.grad(value, [end for _, end in ends], allow_unused=True)
    return _WithGradients.apply(value.detach(), gradients, *(original for original, _ in ends))


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple, *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple:
        # Not by `factor *= …`: a graph may be walked more than once.
        given = (None if each is None else each * factor for each in ctx.gradients)
        return (None, None, *given)
