"""The target class and the others, apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from .checks import require_positive
from .reduction import weighted_mean


@MODELS.register_module()
class DKD(nn.Module):
    r"""Divergences of "target or not" and of the distribution among the other classes, weighted apart.

    .. math:: \tau^2 (\alpha \, KL(b^t \| b^s) + \beta \, KL(\hat p^t \| \hat p^s)), \quad
        b = (p_y, 1 - p_y), \quad \hat p_c = p_c / (1 - p_y) \text{ for } c \ne y

    with :math:`p = \mathrm{softmax}(z / \tau)` and the target class :math:`y`. Zhao et al.: Decoupled
    Knowledge Distillation, CVPR 2022 (arXiv 2203.08679), who show that the plain divergence is this
    with :math:`\alpha = 1` and :math:`\beta = 1 - p^t_y`, so that the second term vanishes where the
    teacher is confident. The target is that of the labels, background included, so the alignment must
    provide it (:class:`mmkd.alignments.RoIClassAlignment` on the student's proposals).

    Args:
        alpha: Weight of the target class.
        beta: Weight of the other classes.
        tau: Temperature.
    """

    activation = 'softmax'
    needs_target = 'class'

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, tau: float = 1.0) -> None:
        super().__init__()
        require_positive(tau=tau)
        self.alpha, self.beta, self.tau = alpha, beta, tau

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, *, target: Tensor
    ) -> Tensor:
        """Scores, shape (N, C) each; weight and target class of shape (N,); returns a scalar."""
        if student.shape[-1] < 2:
            raise ConfigError(f'DKD needs at least 2 classes, got scores {tuple(student.shape)}')
        log_q, log_p = ((side.float() / self.tau).log_softmax(-1) for side in (student, teacher))
        own = F.one_hot(target, student.shape[-1]).bool()
        binary, others = [], []
        for side in (log_q, log_p):
            among = side.masked_fill(own, float('-inf'))
            rest = among.logsumexp(-1)
            binary.append(torch.stack([side[own], rest], -1))
            # The target itself is a constant, so that it adds nothing.
            others.append((side - rest[:, None]).masked_fill(own, 0.0))
        target_term = _divergence(binary[0], binary[1])
        other_term = _divergence(others[0], others[1], own)
        return (
            weighted_mean(self.alpha * target_term + self.beta * other_term, weight) * self.tau**2
        )


def _divergence(log_q: Tensor, log_p: Tensor, exclude: Tensor | None = None) -> Tensor:
    values = F.kl_div(log_q, log_p, reduction='none', log_target=True)
    return (values if exclude is None else values.masked_fill(exclude, 0.0)).sum(-1)
