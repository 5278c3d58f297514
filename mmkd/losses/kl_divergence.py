"""Soft targets."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from .checks import require_positive
from .reduction import weighted_mean

ACTIVATIONS = ('softmax', 'sigmoid')


@MODELS.register_module()
class KLDivergence(nn.Module):
    r"""Kullback-Leibler divergence of the student's class distribution from the teacher's.

    .. math:: \tau^2 \sum_c p_c \log (p_c / q_c), \quad p = \sigma(z_t / \tau), q = \sigma(z_s / \tau)

    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531), sec.
    2, whose factor :math:`\tau^2` keeps the gradient's size when the temperature changes. With a
    sigmoid every output is a distribution over yes and no, and their divergences are summed.

    Args:
        tau: Temperature; above 1 it softens both distributions.
        activation: ``softmax`` over the last axis, or ``sigmoid``.
    """

    def __init__(self, tau: float = 1.0, activation: str = 'softmax') -> None:
        super().__init__()
        require_positive(tau=tau)
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation must be one of {ACTIVATIONS}, got '{activation}'")
        self.tau = tau
        self.activation = activation

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Scores before the activation, shape (N, C) each; weight of shape (N,); returns a scalar."""
        student, teacher = student.float() / self.tau, teacher.float() / self.tau
        if self.activation == 'softmax':
            log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
            divergence = F.kl_div(log_q, log_p, reduction='none', log_target=True)
        else:
            # Both outcomes of each output, from log-sigmoids: stable where a sigmoid rounds to 1.
            divergence = F.kl_div(
                F.logsigmoid(student), F.logsigmoid(teacher), reduction='none', log_target=True
            ) + F.kl_div(
                F.logsigmoid(-student), F.logsigmoid(-teacher), reduction='none', log_target=True
            )
        return weighted_mean(divergence.sum(-1), weight) * self.tau**2
