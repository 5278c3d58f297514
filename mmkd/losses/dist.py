"""Relations between predictions instead of their values."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError


@MODELS.register_module()
class DIST(nn.Module):
    r"""One minus the correlation of class probabilities, within each row and within each class.

    .. math:: \tau^2 \Big( \beta \, \frac1N \sum_i (1 - \rho(q_{i:}, p_{i:}))
        + \gamma \, \frac1C \sum_c (1 - \rho(q_{:c}, p_{:c})) \Big), \quad
        p = \mathrm{softmax}(t / \tau), q = \mathrm{softmax}(s / \tau)

    with Pearson's :math:`\rho`. Huang et al.: Knowledge Distillation from A Stronger Teacher, NeurIPS
    2022 (arXiv 2205.10536). A correlation asks for the same order and spacing, not the same
    numbers, which a weaker student cannot reach. Where a row counts more, it does so in both terms.

    Args:
        beta: Weight of the relation between classes (inter-class).
        gamma: Weight of the relation between rows (intra-class).
        tau: Temperature.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0) -> None:
        super().__init__()
        if tau <= 0:
            raise ConfigError(f'tau={tau} must be above 0')
        self.beta, self.gamma, self.tau = beta, gamma, tau

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Scores before a softmax, shape (N, C) each; weight of shape (N,); returns a scalar."""
        if student.dim() != 2:
            raise ConfigError(f'DIST compares scores of shape (N, C), got {tuple(student.shape)}')
        if not len(student):
            return student.sum()
        q, p = ((side.float() / self.tau).softmax(-1) for side in (student, teacher))
        weight = q.new_ones(len(q)) if weight is None else weight.to(q)
        share = weight / weight.sum().clamp(min=1e-6)
        inter = ((1 - _correlation(q, p, q.new_ones(1, q.shape[1]), 1)) * share).sum()
        # With no row to count, every class is constant, and its correlation 0.
        counts = (weight.sum() > 0).to(q)
        intra = (1 - _correlation(q, p, share[:, None], 0)).mean() * counts
        return (self.beta * inter + self.gamma * intra) * self.tau**2


def _correlation(a: Tensor, b: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Pearson's correlation along an axis, each entry counted by its weight."""
    weight = weight / weight.sum(axis, keepdim=True).clamp(min=1e-6)
    a, b = (side - (weight * side).sum(axis, keepdim=True) for side in (a, b))
    product = (weight * a * b).sum(axis)
    spread = [(weight * side.square()).sum(axis) for side in (a, b)]
    # Inside the root, where its derivative at 0 would be infinite.
    return product / torch.sqrt(spread[0] * spread[1] + 1e-16)
