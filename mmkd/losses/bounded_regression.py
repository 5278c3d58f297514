"""Box regression with the teacher's error as an upper bound."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .checks import require_non_negative
from .reduction import weighted_mean


@MODELS.register_module()
class BoundedRegression(nn.Module):
    r"""The student's squared error against the labels; 0 where it is smaller than the teacher's.

    .. math:: \|s - y\|^2 \text{ if } \|s - y\|^2 + m > \|t - y\|^2 \text{, else } 0

    Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS 2017,
    eq. 5. The teacher's box can be wrong, so it is not a target but an upper bound for the student's
    error. :class:`mmkd.alignments.RoIBoxAlignment` on the student's proposals provides the labelled boxes.

    Args:
        margin: The loss is 0 once the student's squared error is smaller than the teacher's by this
            margin, in squared units of the values.

    Examples:
        >>> import torch
        >>> from mmkd.losses import BoundedRegression
        >>> loss = BoundedRegression(margin=0.0)
        >>> target, teacher = torch.zeros(1, 4), torch.full((1, 4), 0.5)
        >>> loss(torch.full((1, 4), 0.1), teacher, target=target).item()  # better than the teacher
        0.0
        >>> loss(torch.full((1, 4), 1.0), teacher, target=target).item()
        4.0
    """

    needs_target = 'box'

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__()
        require_non_negative(margin=margin)
        self.margin = margin

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, *, target: Tensor
    ) -> Tensor:
        """Compare rows of shape (N, D) with ``target``, the labelled values of the same shape.

        ``weight`` has the shape (N,). Returns a scalar.
        """
        error, bound = (
            F.mse_loss(side.float(), target.float(), reduction='none').sum(-1)
            for side in (student, teacher)
        )
        return weighted_mean(error * (error + self.margin > bound), weight)
