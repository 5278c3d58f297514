"""Where the channels together are active."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .checks import require_positive
from .reduction import Mask, fill_invalid, masked_mean, require_maps, weighted_mean


@MODELS.register_module()
class AttentionTransfer(nn.Module):
    r"""Squared distance of attention maps, which have no channels.

    .. math:: \frac{1}{HW} \Big\| \frac{Q_s}{\|Q_s\|_2} - \frac{Q_t}{\|Q_t\|_2} \Big\|_2^2, \quad
        Q = \frac1C \sum_c |x_c|^p

    and the mean over images. Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017
    (arXiv 1612.03928), sec. 3.1, squared as in its published code.

    No connector is needed: ``align=dict(type='FeatureAlignment', same_channels=False)``.

    Args:
        p: The exponent; the larger, the more a channel's strongest positions count.
    """

    def __init__(self, p: float = 2.0) -> None:
        super().__init__()
        require_positive(p=p)
        self.p = p

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Maps, shape (N, C, H, W) each; weight (N,); mask of positions (N, H, W); returns a scalar."""
        require_maps(self, student)
        own, target = map(self._attention, fill_invalid(mask, student, teacher))
        return weighted_mean(masked_mean((own - target).square(), mask), weight)

    def _attention(self, maps: Tensor) -> Tensor:
        # The power of 0 has no gradient where p < 1.
        attention = maps.abs().clamp(min=1e-12).pow(self.p).mean(1, keepdim=True)
        return F.normalize(attention.flatten(1), dim=1).view_as(attention)
