"""Overlap, distance and shape of boxes."""

from __future__ import annotations

import math

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from .reduction import weighted_mean


@MODELS.register_module()
class CIoU(nn.Module):
    r"""One minus the complete intersection over union of two boxes.

    .. math:: 1 - IoU + \frac{\|c_s - c_t\|^2}{d^2} + \alpha v, \quad
        v = \frac{4}{\pi^2} \Big(\arctan\frac{w_t}{h_t} - \arctan\frac{w_s}{h_s}\Big)^2, \quad
        \alpha = \frac{v}{1 - IoU + v}

    with the centres :math:`c` and the diagonal :math:`d` of the hull. Zheng et al.: Distance-IoU Loss,
    AAAI 2020 (arXiv 1911.08287); :math:`\alpha` is a constant to the gradient.

    Args:
        eps: Smallest divisor; below the area of any box in fractions of an image.
    """

    #: What the alignment must give, where it has a choice.
    box_format = 'xyxy'

    def __init__(self, eps: float = 1e-9) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Boxes (x1, y1, x2, y2), shape (N, 4) each; weight of shape (N,); returns a scalar."""
        if student.dim() != 2 or student.shape[-1] != 4:
            raise ConfigError(f'CIoU compares boxes of shape (N, 4), got {tuple(student.shape)}')
        ours, theirs = student.float(), teacher.float()
        size, other = (side[:, 2:] - side[:, :2] for side in (ours, theirs))
        shared = torch.minimum(ours[:, 2:], theirs[:, 2:]) - torch.maximum(
            ours[:, :2], theirs[:, :2]
        )
        shared = shared.clamp(min=0).prod(-1)
        overlap = shared / (size.prod(-1) + other.prod(-1) - shared).clamp(min=self.eps)
        hull = torch.maximum(ours[:, 2:], theirs[:, 2:]) - torch.minimum(ours[:, :2], theirs[:, :2])
        apart = (ours[:, :2] + ours[:, 2:] - theirs[:, :2] - theirs[:, 2:]).square().sum(-1) / 4
        apart = apart / hull.square().sum(-1).clamp(min=self.eps)
        angles = (torch.atan2(side[:, 0], side[:, 1].clamp(min=self.eps)) for side in (size, other))
        shape = 4 / math.pi**2 * (next(angles) - next(angles)).square()
        with torch.no_grad():
            alpha = shape / (1 - overlap + shape).clamp(min=self.eps)
        return weighted_mean(1 - overlap + apart + alpha * shape, weight)
