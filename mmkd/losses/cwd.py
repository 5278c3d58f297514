"""Channel-wise distillation (CWD)."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .checks import require_positive
from .reduction import Mask, fill_invalid, require_maps, weighted_mean


@MODELS.register_module()
class CWD(nn.Module):
    r"""KL divergence between the spatial distributions of each channel.

    .. math:: \frac{\tau^2}{C} \sum_c \sum_x p_{cx} \log (p_{cx} / q_{cx}), \quad
        p_c = \mathrm{softmax}_x(t_c / \tau), q_c = \mathrm{softmax}_x(s_c / \tau)

    where the softmax is over the positions x of a channel. The loss is the mean over images. Shu et al.,
    "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021 (arXiv 2011.13256).

    Args:
        tau: Temperature. Values above 1 flatten the distributions.

    Examples:
        >>> import torch
        >>> from mmkd.losses import CWD
        >>> loss = CWD(tau=4.0)
        >>> student, teacher = torch.rand(2, 16, 8, 8), torch.rand(2, 16, 8, 8)
        >>> loss(student, teacher).item() > 0
        True
        >>> abs(loss(teacher + 3, teacher).item()) < 1e-4  # an offset does not change a softmax
        True
    """

    def __init__(self, tau: float = 1.0) -> None:
        super().__init__()
        require_positive(tau=tau)
        self.tau = tau

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Compare maps of shape (N, C, H, W).

        ``weight`` has the shape (N,) and ``mask``, the valid positions, the shape (N, H, W). Returns a
        scalar.
        """
        require_maps(self, student)
        # A large finite value gives probability 0 outside the mask; infinity minus infinity would be NaN.
        sides = [side.float() / self.tau for side in (student, teacher)]
        log_q, log_p = (
            side.flatten(2).log_softmax(-1) for side in fill_invalid(mask, *sides, value=-1e30)
        )
        divergence = F.kl_div(log_q, log_p, reduction='none', log_target=True).sum(-1)
        return weighted_mean(divergence, weight) * self.tau**2
