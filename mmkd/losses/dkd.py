"""Decoupled knowledge distillation (DKD)."""

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
    r"""Weighted sum of two KL divergences: target against all other classes, and among the other classes.

    .. math:: \tau^2 (\alpha \, KL(b^t \| b^s) + \beta \, KL(\hat p^t \| \hat p^s)), \quad
        b = (p_y, 1 - p_y), \quad \hat p_c = p_c / (1 - p_y) \text{ for } c \ne y

    with :math:`p = \mathrm{softmax}(z / \tau)` and the target class :math:`y`. Zhao et al., "Decoupled
    Knowledge Distillation", CVPR 2022 (arXiv 2203.08679). The paper shows that the usual KL divergence is
    the case :math:`\alpha = 1`, :math:`\beta = 1 - p^t_y`: its second term vanishes where the teacher is
    confident.

    The target class is the labelled class, background included. The alignment must provide it:
    :class:`mmkd.alignments.RoIClassAlignment` on the student's proposals.

    Args:
        alpha: Weight of the first term (target class against all others).
        beta: Weight of the second term (among the other classes).
        tau: Temperature.

    Examples:
        >>> import torch
        >>> from mmkd.losses import DKD
        >>> loss = DKD(alpha=1.0, beta=8.0, tau=2.0)
        >>> student = torch.tensor([[2.0, 0.5, 0.0], [0.1, 1.0, 0.3]])
        >>> teacher = torch.tensor([[4.0, 1.0, 0.0], [0.0, 3.0, 0.5]])
        >>> round(loss(student, teacher, target=torch.tensor([0, 1])).item(), 3)
        0.546
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
        """Compare scores before a softmax, shape (N, C).

        ``weight`` and ``target``, the labelled class of each row, have the shape (N,). Returns a scalar.
        """
        if student.shape[-1] < 2:
            raise ConfigError(
                f'DKD: scores must have at least 2 classes, got shape {tuple(student.shape)}'
            )
        log_q, log_p = ((side.float() / self.tau).log_softmax(-1) for side in (student, teacher))
        is_target = F.one_hot(target, student.shape[-1]).bool()
        binary, others = [], []
        for side in (log_q, log_p):
            rest = side.masked_fill(is_target, float('-inf')).logsumexp(-1)
            binary.append(torch.stack([side[is_target], rest], -1))
            # A constant at the target class: it adds nothing to the divergence.
            others.append((side - rest[:, None]).masked_fill(is_target, 0.0))
        target_term = _divergence(binary[0], binary[1])
        other_term = _divergence(others[0], others[1], is_target)
        return (
            weighted_mean(self.alpha * target_term + self.beta * other_term, weight) * self.tau**2
        )


def _divergence(log_q: Tensor, log_p: Tensor, exclude: Tensor | None = None) -> Tensor:
    values = F.kl_div(log_q, log_p, reduction='none', log_target=True)
    return (values if exclude is None else values.masked_fill(exclude, 0.0)).sum(-1)
