"""Feature maps compared by correlation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .reduction import Mask, require_maps, weighted_mean


@MODELS.register_module()
class PKD(nn.Module):
    r"""Half the squared distance of feature maps whose channels are standardised over the batch.

    .. math:: \frac{1}{2m} \sum_{i=1}^m (\hat s_i - \hat t_i)^2, \quad
        \hat x = (x - \mu_c) / \sigma_c \text{ over all images and positions of a channel } c

    Cao et al.: PKD, General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient, NeurIPS 2022 (arXiv 2207.02039). Apart from the unbiased deviation this is one minus
    the correlation of student and teacher in each channel, so magnitudes do not matter and neither do
    those of a few dominant channels. Teacher and student may be of different kinds.

    With a mask, all valid positions of the batch are standardised together and count alike. So the
    loss of an image depends on what it is batched with, by the paper's definition.
    """

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Maps, shape (N, C, H, W) each; weight (N,); mask of positions (N, H, W); returns a scalar."""
        require_maps(self, student)
        if mask is not None:  # from here on one row per valid position
            student, teacher = (side.movedim(1, -1)[mask] for side in (student, teacher))
            weight = None if weight is None else weight[:, None, None].expand_as(mask)[mask]
        values = F.mse_loss(_standardised(student), _standardised(teacher), reduction='none')
        count = max(student.numel() // max(student.shape[1], 1), 1)
        unbiased = (count - 1) / count  # batch_norm divides by the biased deviation
        return weighted_mean(values, weight) / 2 * unbiased


def _standardised(maps: Tensor) -> Tensor:
    """Each channel (axis 1) with mean 0 and biased deviation 1; 0 where it is constant.

    Of all ways to write it, batch_norm keeps the least for the backward pass: its input. The function
    of torch.nn.functional would refuse a single position.
    """
    none = dict(weight=None, bias=None, running_mean=None, running_var=None)
    return torch.batch_norm(
        maps.float(), **none, training=True, momentum=0.0, eps=1e-12, cudnn_enabled=False
    )
