"""DIST: class scores compared by correlation instead of by value."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from .checks import require_positive
from .reduction import weighted_mean

# Smaller log-probabilities are raised to this value; exp(-100) is near the smallest float32.
_MIN_LOG_PROBABILITY = -100.0
# A relative spread below this, per unit of the logarithm, may come from float32 rounding alone.
_RELATIVE_ROUNDING = 1e-6


@MODELS.register_module()
class DIST(nn.Module):
    r"""One minus the correlation of class probabilities, per row and per class.

    .. math:: \tau^2 \Big( \beta \, \frac1N \sum_i (1 - \rho(q_{i:}, p_{i:}))
        + \gamma \, \frac1C \sum_c (1 - \rho(q_{:c}, p_{:c})) \Big), \quad
        p = \mathrm{softmax}(t / \tau), q = \mathrm{softmax}(s / \tau)

    with Pearson's correlation :math:`\rho`. Huang et al., "Knowledge Distillation from A Stronger
    Teacher", NeurIPS 2022 (arXiv 2205.10536). A correlation requires the same order and spacing of the
    probabilities, not the same values, which a weaker student cannot reach. The weights of rows apply to
    both terms.

    All classes have the same weight, however improbable. The published code adds an epsilon to the
    divisor; with as many rows as a detector has, this epsilon exceeds the spread of improbable classes.

    Values without spread (beyond rounding) have no correlation. If neither side varies, as with a single
    row, the term is 0. If only one side varies, the term is 1. Neither case has a gradient.

    Args:
        beta: Weight of the relation between classes (inter-class).
        gamma: Weight of the relation between rows (intra-class).
        tau: Temperature.

    Examples:
        >>> import torch
        >>> from mmkd.losses import DIST
        >>> loss = DIST(beta=1.0, gamma=1.0, tau=1.0)
        >>> scores = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 0.5], [1.0, 0.0, 4.0]])
        >>> abs(loss(scores, scores).item()) < 1e-6
        True
        >>> loss(scores, scores.flip(0)).item() > 0.5
        True
    """

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0) -> None:
        super().__init__()
        require_positive(tau=tau)
        self.beta, self.gamma, self.tau = beta, gamma, tau

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare scores before a softmax, shape (N, C).

        ``weight`` has the shape (N,). Returns a scalar.
        """
        if student.dim() != 2:
            raise ConfigError(
                f'DIST: values must be scores of shape (N, C), got {tuple(student.shape)}'
            )
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
    """One minus Pearson's weighted correlation of probabilities in each column.

    Args:
        log_q: Log-probabilities of the student, shape (R, K).
        log_p: Log-probabilities of the teacher, shape (R, K).
        weight: Weight of each row, shape (R,).

    Returns:
        Shape (K,); 0 if all weights are 0.
    """
    total = weight.sum()
    share = (weight / total.where(total > 0, 1.0))[:, None]
    (own, varies), (target, target_varies) = (_standardised(side, share) for side in (log_q, log_p))
    # The squared distance of two unit vectors is 2 (1 - correlation), and exactly 0 if they are equal.
    units = (varies.float() + target_varies.float()).clamp(min=1)
    return (share * (own - target).square()).sum(0) / units


def _standardised(log_p: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities with mean 0 and deviation 1 in each column, and whether each column varies.

    A column that does not vary becomes 0.
    """
    counts = share > 0
    # Divide each column by its mean before squaring, which does not change a correlation: the squares of
    # probabilities of 1e-14 underflow in float32.
    mean = (log_p.detach() + share.log()).logsumexp(0)
    values = (log_p - mean).masked_fill(~counts, 0.0).expm1()
    values = values - (share * values).sum(0)
    variance = (share * values.square()).sum(0)
    varies = variance > (_RELATIVE_ROUNDING * (1 + mean.abs())).square()
    return values / variance.where(varies, 1.0).sqrt() * varies, varies
