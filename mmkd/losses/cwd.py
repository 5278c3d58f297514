"""Where each channel is active."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .checks import require_positive
from .reduction import Mask, fill_invalid, require_maps, weighted_mean


@MODELS.register_module()
class CWD(nn.Module):
    r"""Kullback-Leibler divergence of each channel's distribution over positions.

    .. math:: \frac{\tau^2}{C} \sum_c \sum_x p_{cx} \log (p_{cx} / q_{cx}), \quad
        p_c = \mathrm{softmax}_x(t_c / \tau), q_c = \mathrm{softmax}_x(s_c / \tau)

    and the mean over images. Shu et al.: Channel-wise Knowledge Distillation for Dense Prediction, ICCV
    2021 (arXiv 2011.13256).

    Args:
        tau: Temperature; above 1 it spreads a channel's attention.
    """

    def __init__(self, tau: float = 1.0) -> None:
        super().__init__()
        require_positive(tau=tau)
        self.tau = tau

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Maps, shape (N, C, H, W) each; weight (N,); mask of positions (N, H, W); returns a scalar."""
        require_maps(self, student)
        # Probability 0 outside the mask. Finite, as the difference of two infinities would be NaN.
        sides = [side.float() / self.tau for side in (student, teacher)]
        log_q, log_p = (
            side.flatten(2).log_softmax(-1) for side in fill_invalid(mask, *sides, value=-1e30)
        )
        divergence = F.kl_div(log_q, log_p, reduction='none', log_target=True).sum(-1)
        return weighted_mean(divergence, weight) * self.tau**2
