"""Where the channels together are active."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from .maps import require_maps
from .reduction import weighted_mean


@MODELS.register_module()
class AttentionTransfer(nn.Module):
    r"""Squared distance of attention maps, which have no channels.

    .. math:: \frac{1}{HW} \Big\| \frac{Q_s}{\|Q_s\|_2} - \frac{Q_t}{\|Q_t\|_2} \Big\|_2^2, \quad
        Q = \frac1C \sum_c |x_c|^p

    and the mean over images. Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017
    (arXiv 1612.03928), sec. 3.1, squared as in its published code.

    No connector is needed: ``align=dict(type='FeatureAlignment', same_channels=False)``.

    Args:
        p: The exponent; the larger, the more a channel's strongest places count.
    """

    def __init__(self, p: float = 2.0) -> None:
        super().__init__()
        if p <= 0:
            raise ConfigError(f'p={p} must be above 0')
        self.p = p

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Maps, shape (N, C, H, W) each; weight of shape (N,); returns a scalar."""
        require_maps(self, student)
        ours, theirs = (
            F.normalize(side.float().abs().pow(self.p).mean(1).flatten(1), dim=1)
            for side in (student, teacher)
        )
        return weighted_mean((ours - theirs).square(), weight)
