"""Distances between numbers: features, deltas, box coordinates."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from .reduction import Mask, fill_invalid, masked_mean, weighted_mean

REDUCTIONS = ('mean', 'sum')


@MODELS.register_module()
class MSE(nn.Module):
    r"""Mean squared error :math:`\frac1n \sum (s - t)^2`.

    The hint loss of FitNets (Romero et al., ICLR 2015, arXiv 1412.6550, eq. 3) on features; on
    logits, Ba and Caruana: Do Deep Nets Really Need to be Deep?, NeurIPS 2014 (arXiv 1312.6184).

    Args:
        reduction: ``mean`` over all values, or ``sum`` over the values of each entry of the first
            dimension (an image of a batch of maps) and the mean over those, as MGD and FGD have it: a
            large map then counts more than a small one.
    """

    def __init__(self, reduction: str = 'mean') -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ConfigError(f"reduction must be one of {REDUCTIONS}, got '{reduction}'")
        self.reduction = reduction

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Same shapes (N, …); weight (N,); of maps a mask of positions (N, H, W); returns a scalar."""
        ours, theirs = fill_invalid(mask, student, teacher)
        values = F.mse_loss(ours, theirs, reduction='none')
        if self.reduction == 'sum':
            return weighted_mean(values.flatten(1).sum(1), weight)
        return weighted_mean(masked_mean(values, mask), weight)


@MODELS.register_module()
class L1(nn.Module):
    r"""Mean absolute error :math:`\frac1n \sum |s - t|`."""

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Same shapes (N, …); weight (N,); of maps a mask of positions (N, H, W); returns a scalar."""
        ours, theirs = fill_invalid(mask, student, teacher)
        values = F.l1_loss(ours, theirs, reduction='none')
        return weighted_mean(masked_mean(values, mask), weight)


@MODELS.register_module()
class SmoothL1(nn.Module):
    r"""Squared error :math:`d^2 / 2\beta` below :math:`\beta`, absolute error :math:`d - \beta / 2` above.

    Girshick: Fast R-CNN, ICCV 2015 (arXiv 1504.08083), eq. 3, where :math:`\beta` is 1.

    Args:
        beta: Where the two pieces meet, in the unit of the values.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if beta <= 0:
            raise ConfigError(f'beta must be above 0, got {beta}; for 0 use L1')
        self.beta = beta

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Same shapes (N, …); weight (N,); of maps a mask of positions (N, H, W); returns a scalar."""
        ours, theirs = fill_invalid(mask, student, teacher)
        values = F.smooth_l1_loss(ours, theirs, reduction='none', beta=self.beta)
        return weighted_mean(masked_mean(values, mask), weight)
