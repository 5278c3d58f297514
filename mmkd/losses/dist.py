"""Relations between predictions instead of their values."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from .checks import require_positive
from .reduction import weighted_mean

# Probabilities below this are taken for it: the smallest that float32 holds.
_MIN_LOG_PROBABILITY = -100.0
# Relative spread, per unit of a logarithm, that float32's rounding of the logarithm explains.
_RELATIVE_ROUNDING = 1e-6


@MODELS.register_module()
class DIST(nn.Module):
    r"""One minus the correlation of class probabilities, within each row and within each class.

    .. math:: \tau^2 \Big( \beta \, \frac1N \sum_i (1 - \rho(q_{i:}, p_{i:}))
        + \gamma \, \frac1C \sum_c (1 - \rho(q_{:c}, p_{:c})) \Big), \quad
        p = \mathrm{softmax}(t / \tau), q = \mathrm{softmax}(s / \tau)

    with Pearson's :math:`\rho`. Huang et al.: Knowledge Distillation from A Stronger Teacher, NeurIPS
    2022 (arXiv 2205.10536). A correlation asks for the same order and spacing, not the same
    numbers, which a weaker student cannot reach. Where a row counts more, it does so in both terms.

    Every class counts alike, however improbable: the published code adds an epsilon to the divisor, which
    at the size of a detector's batch exceeds the spread of all improbable classes.

    Values without spread, beyond rounding, have no correlation. On both sides (a class of which neither
    model varies, a single row) they agree, so the term is 0; on one side it is 1. Neither
    has a gradient.

    Args:
        beta: Weight of the relation between classes (inter-class).
        gamma: Weight of the relation between rows (intra-class).
        tau: Temperature.
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0) -> None:
        super().__init__()
        require_positive(tau=tau)
        self.beta, self.gamma, self.tau = beta, gamma, tau

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Scores before a softmax, shape (N, C) each; weight of shape (N,); returns a scalar."""
        if student.dim() != 2:
            raise ConfigError(f'DIST compares scores of shape (N, C), got {tuple(student.shape)}')
        if not len(student):
            return student.sum()
        log_q, log_p = (
            (side.float() / self.tau).log_softmax(-1).clamp(min=_MIN_LOG_PROBABILITY)
            for side in (student, teacher)
        )
        rows, classes = (torch.ones(size, device=log_q.device) for size in log_q.shape)
        inter = weighted_mean(_distance(log_q.T, log_p.T, classes), weight)
        intra = _distance(log_q, log_p, rows if weight is None else weight.float()).mean()
        return (self.beta * inter + self.gamma * intra) * self.tau**2


def _distance(log_q: Tensor, log_p: Tensor, weight: Tensor) -> Tensor:
    """One minus Pearson's correlation of probabilities in each column, each row counted by its weight.

    Args:
        log_q: The student's logarithms, shape (R, K).
        log_p: The teacher's.
        weight: Shape (R,).

    Returns:
        Shape (K,); 0 where no row counts.
    """
    total = weight.sum()
    share = (weight / total.where(total > 0, 1.0))[:, None]
    (own, varies), (target, target_varies) = (_standardised(side, share) for side in (log_q, log_p))
    # The squared distance of two unit vectors is 2 (1 - correlation), and exactly 0 where they agree.
    units = (varies.float() + target_varies.float()).clamp(min=1)
    return (share * (own - target).square()).sum(0) / units


def _standardised(log_p: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities with mean 0 and deviation 1 in each column, or 0; and whether a column varies."""
    counts = share > 0
    # A correlation does not change with the scale, so each column is divided by its mean before any
    # square: probabilities of 1e-14 have squares that float32 cannot hold.
    mean = (log_p.detach() + share.log()).logsumexp(0)
    values = (log_p - mean).masked_fill(~counts, 0.0).expm1()
    values = values - (share * values).sum(0)
    variance = (share * values.square()).sum(0)
    varies = variance > (_RELATIVE_ROUNDING * (1 + mean.abs())).square()
    return values / variance.where(varies, 1.0).sqrt() * varies, varies
