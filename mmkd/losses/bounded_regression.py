"""Boxes that need not be better than the teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .checks import require_non_negative
from .reduction import weighted_mean


@MODELS.register_module()
class BoundedRegression(nn.Module):
    r"""The student's squared error against the labels, where the teacher's is smaller.

    .. math:: \|s - y\|^2 \text{ if } \|s - y\|^2 + m > \|t - y\|^2 \text{, else } 0

    Chen et al.: Learning Efficient Object Detection Models with Knowledge Distillation, NeurIPS 2017,
    eq. 5: a teacher's regression can point away from the truth, so it is not a target but a bound on
    the student's error. The labels' boxes come from :class:`mmkd.alignments.RoIBoxAlignment`
    on the student's proposals.

    Args:
        margin: By how much the student must be better than the teacher before its loss is 0, in squared
            units of the values.
    """

    needs_target = 'box'

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__()
        require_non_negative(margin=margin)
        self.margin = margin

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, *, target: Tensor
    ) -> Tensor:
        """Rows and those of the labels, shape (N, D) each; weight of shape (N,); returns a scalar."""
        own, bound = (
            F.mse_loss(side.float(), target.float(), reduction='none').sum(-1)
            for side in (student, teacher)
        )
        return weighted_mean(own * (own + self.margin > bound), weight)
