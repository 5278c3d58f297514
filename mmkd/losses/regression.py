"""Regression losses for features, box deltas and box coordinates."""

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

    On features, this is the hint loss of FitNets (Romero et al., ICLR 2015, arXiv 1412.6550, eq. 3). On
    logits, see Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014 (arXiv 1312.6184).

    Args:
        reduction: ``mean``: the mean over all values. ``sum``: the sum over the values of each image (or
            row), then the mean over images, as in MGD and FGD. A large map then has a larger loss than a
            small one.

    Examples:
        >>> import torch
        >>> from mmkd.losses import MSE
        >>> student, teacher = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
        >>> MSE()(student, teacher).item()
        1.0
        >>> MSE(reduction='sum')(student, teacher).item()  # 3 * 4 * 4 values per image
        48.0
    """

    def __init__(self, reduction: str = 'mean') -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ConfigError(f'reduction must be one of {REDUCTIONS}, got {reduction!r}')
        self.reduction = reduction

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Compare tensors of the same shape (N, …).

        ``weight`` has the shape (N,) and ``mask``, the valid positions of maps, the shape (N, H, W).
        Returns a scalar.
        """
        student, teacher = fill_invalid(mask, student, teacher)
        values = F.mse_loss(student, teacher, reduction='none')
        if self.reduction == 'sum':
            return weighted_mean(values.flatten(1).sum(1), weight)
        return weighted_mean(masked_mean(values, mask), weight)


@MODELS.register_module()
class L1(nn.Module):
    r"""Mean absolute error :math:`\frac1n \sum |s - t|`.

    Examples:
        >>> import torch
        >>> from mmkd.losses import L1
        >>> student, teacher = torch.zeros(2, 4), torch.tensor([[1.0] * 4, [3.0] * 4])
        >>> L1()(student, teacher).item()
        2.0
        >>> L1()(student, teacher, weight=torch.tensor([1.0, 0.0])).item()  # the first row only
        1.0
    """

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Compare tensors of the same shape (N, …).

        ``weight`` has the shape (N,) and ``mask``, the valid positions of maps, the shape (N, H, W).
        Returns a scalar.
        """
        student, teacher = fill_invalid(mask, student, teacher)
        values = F.l1_loss(student, teacher, reduction='none')
        return weighted_mean(masked_mean(values, mask), weight)


@MODELS.register_module()
class SmoothL1(nn.Module):
    r"""Squared error :math:`d^2 / 2\beta` below :math:`\beta`, absolute error :math:`d - \beta / 2` above.

    Girshick, "Fast R-CNN", ICCV 2015 (arXiv 1504.08083), eq. 3, where :math:`\beta` is 1.

    Args:
        beta: The error at which the two pieces meet, in the unit of the values.

    Examples:
        >>> import torch
        >>> from mmkd.losses import SmoothL1
        >>> loss = SmoothL1(beta=1.0)
        >>> loss(torch.zeros(1, 4), torch.full((1, 4), 0.5)).item()
        0.125
        >>> loss(torch.zeros(1, 4), torch.full((1, 4), 3.0)).item()
        2.5
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if beta <= 0:
            raise ConfigError(f'beta must be above 0, got {beta}; use L1 for 0')
        self.beta = beta

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Compare tensors of the same shape (N, …).

        ``weight`` has the shape (N,) and ``mask``, the valid positions of maps, the shape (N, H, W).
        Returns a scalar.
        """
        student, teacher = fill_invalid(mask, student, teacher)
        values = F.smooth_l1_loss(student, teacher, reduction='none', beta=self.beta)
        return weighted_mean(masked_mean(values, mask), weight)
