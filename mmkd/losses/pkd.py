"""Feature maps compared by correlation."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .maps import require_maps
from .reduction import weighted_mean


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
        values = F.mse_loss(_standardised(student), _standardised(teacher), reduction='none')
        return weighted_mean(values, weight) / 2


def _standardised(maps: Tensor) -> Tensor:
    maps, axes = maps.float(), (0, 2, 3)
    count = maps.numel() // max(maps.shape[1], 1)
    deviation = maps.std(axes, keepdim=True, correction=min(1, count - 1)) if count else maps
    return (maps - maps.mean(axes, keepdim=True)) / (deviation + 1e-6)
