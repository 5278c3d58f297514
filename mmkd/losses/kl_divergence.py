"""KL divergence with soft targets."""

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
    r"""Kullback-Leibler divergence between the class distributions of teacher and student.

    .. math:: \tau^2 \sum_c p_c \log (p_c / q_c), \quad p = \sigma(z_t / \tau), q = \sigma(z_s / \tau)

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531), sec.
    2. The factor :math:`\tau^2` keeps the size of the gradient when the temperature changes. With a
    sigmoid, every class is a binary distribution of its own; the divergences are summed over classes.

    Args:
        tau: Temperature. Values above 1 soften both distributions.
        activation: ``softmax`` over the last axis, or ``sigmoid``.

    Examples:
        >>> import torch
        >>> from mmkd.losses import KLDivergence
        >>> loss = KLDivergence(tau=2.0)
        >>> student = torch.tensor([[2.0, 0.5, 0.0], [0.1, 1.0, 0.3]])
        >>> teacher = torch.tensor([[4.0, 1.0, 0.0], [0.0, 3.0, 0.5]])
        >>> round(loss(student, teacher).item(), 3)
        0.388
        >>> loss(teacher, teacher).item()
        0.0
    """

    def __init__(self, tau: float = 1.0, activation: str = 'softmax') -> None:
        super().__init__()
        require_positive(tau=tau)
        if activation not in ACTIVATIONS:
            raise ConfigError(f'activation must be one of {ACTIVATIONS}, got {activation!r}')
        self.tau = tau
        self.activation = activation

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare scores before the activation, shape (N, C).

        ``weight`` has the shape (N,). Returns a scalar.
        """
        student, teacher = student.float() / self.tau, teacher.float() / self.tau
        if self.activation == 'softmax':
            log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
            divergence = F.kl_div(log_q, log_p, reduction='none', log_target=True)
        else:
            # Both terms of the binary divergence, from log-sigmoids: stable where a sigmoid rounds to 1.
            divergence = F.kl_div(
                F.logsigmoid(student), F.logsigmoid(teacher), reduction='none', log_target=True
            ) + F.kl_div(
                F.logsigmoid(-student), F.logsigmoid(-teacher), reduction='none', log_target=True
            )
        return weighted_mean(divergence.sum(-1), weight) * self.tau**2
