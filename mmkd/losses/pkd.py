"""Feature maps compared by correlation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .maps import require_maps
from .reduction import weighted_mean

_AXES = (0, 2, 3)
_TINY = 1e-6


@MODELS.register_module()
class PKD(nn.Module):
    r"""Half the squared distance of feature maps whose channels are standardised over the batch.

    .. math:: \frac{1}{2m} \sum_{i=1}^m (\hat s_i - \hat t_i)^2, \quad
        \hat x = (x - \mu_c) / \sigma_c \text{ over all images and places of a channel } c

    Cao et al.: PKD, General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient, NeurIPS 2022 (arXiv 2207.02039). But for the unbiased deviation this is one minus the
    correlation of student and teacher in each channel, so magnitudes do not matter and neither do
    those of a few dominant channels. Teacher and student may be of different kinds.
    """

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Maps, shape (N, C, H, W) each; weight of shape (N,); returns a scalar."""
        require_maps(self, student)
        if weight is None and student.numel() and not teacher.requires_grad:
            return _Distance.apply(student.float(), teacher.float())
        values = F.mse_loss(_standardised(student), _standardised(teacher), reduction='none')
        return weighted_mean(values, weight) / 2


class _Distance(torch.autograd.Function):
    r"""The same without weights, from sums over each channel alone.

    With :math:`n` values in a channel, :math:`f = 1 / \sigma`, and :math:`a, b, c` the sums of
    :math:`\hat s^2, \hat t^2, \hat s \hat t`, the loss is :math:`\sum (a + b - 2 c) / 2 m` over channels. Its
    gradient, :math:`(s - \mu_s) (f_s^2 - (a - c) f_s / (n - 1) \sigma_s) - (t - \mu_t) f_s f_t` over
    :math:`m`, is linear in both maps, so that nothing else as large as they are is kept.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        count = student.numel() // student.shape[1]
        freedom = count - min(1, count - 1)
        (std, mean), (other_std, other_mean) = (
            torch.std_mean(maps, _AXES, correction=count - freedom, keepdim=True)
            for maps in (student, teacher)
        )
        factor, other_factor = 1 / (std + _TINY), 1 / (other_std + _TINY)
        other_factor = other_factor * (other_std > _TINY)  # a constant channel has no more to say
        own = freedom * (std * factor).square()
        other = freedom * (other_std * other_factor).square()
        product = (student - mean).mul_(teacher).sum(_AXES, keepdim=True) * factor * other_factor
        slope = factor.square() - (own - product) * factor / (freedom * std.clamp(min=_TINY))
        scale = 1 / student.numel()
        slope, cross = slope * scale, -factor * other_factor * scale
        ctx.save_for_backward(student, teacher, mean, slope, cross, cross * other_mean)
        return (own + other - 2 * product).sum() * (scale / 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        student, teacher, mean, slope, cross, offset = ctx.saved_tensors
        # In this order, as slopes of all but constant channels are huge.
        found = (student - mean).mul_(slope * gradient)
        return found.addcmul_(teacher, cross * gradient).sub_(offset * gradient), None


def _standardised(maps: Tensor) -> Tensor:
    maps = maps.float()
    count = maps.numel() // max(maps.shape[1], 1)
    deviation = maps.std(_AXES, keepdim=True, correction=min(1, count - 1)) if count else maps
    return (maps - maps.mean(_AXES, keepdim=True)) / (deviation + _TINY)
