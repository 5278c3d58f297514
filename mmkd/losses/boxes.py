"""Overlap of boxes.

Each loss takes boxes (x1, y1, x2, y2), in pixels or in fractions of an image, where an object of one
pixel has an area below 1e-6. So the smallest divisor must be smaller than mmdet's default of 1e-6.
Two boxes without area have no overlap that is defined: it counts as 0, also where they are equal.
"""

from __future__ import annotations

import math

import torch
from mmdet.models.losses.iou_loss import giou_loss
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor, nn

from ..errors import ConfigError
from .reduction import weighted_mean


class BoxLoss(nn.Module):
    """Base of the losses below: the weighted mean over pairs of boxes.

    Args:
        eps: Smallest divisor; below the area of any box in fractions of an image.
    """

    #: The box format that the alignment must return, where it has a choice.
    box_format = 'xyxy'

    def __init__(self, eps: float = 1e-9) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Boxes (x1, y1, x2, y2), shape (N, 4) each; weight of shape (N,); returns a scalar."""
        if student.dim() != 2 or student.shape[-1] != 4:
            raise ConfigError(
                f'{type(self).__name__} compares boxes of shape (N, 4), got {tuple(student.shape)}; with '
                f"RoI boxes set align.coordinates='box'"
            )
        if not len(student):  # bbox_overlaps would return a tensor without a graph
            return student.sum()
        return weighted_mean(self.per_pair(student.float(), teacher.float()), weight)

    def per_pair(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of each pair of boxes, shape (N,)."""
        raise NotImplementedError


@MODELS.register_module()
class IoU(BoxLoss):
    r"""The negative logarithm of the intersection over union of two boxes.

    .. math:: -\log IoU(s, t)

    Yu et al.: UnitBox, ACM Multimedia 2016 (arXiv 1608.01471), eq. 3. Boxes that do not overlap have no
    gradient; :class:`GIoU` gives them one.

    Args:
        eps: Smallest overlap; a smaller one counts as this.
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__(eps)

    def per_pair(self, student: Tensor, teacher: Tensor) -> Tensor:
        # Not mmdet's iou_loss, whose smallest union is fixed at 1e-6: equal boxes of one pixel in
        # fractions of an image would not overlap fully.
        overlaps = bbox_overlaps(student, teacher, is_aligned=True, eps=1e-9)
        return -overlaps.clamp(min=self.eps).log()


@MODELS.register_module()
class GIoU(BoxLoss):
    r"""One minus the generalised intersection over union of two boxes, in [0, 2].

    .. math:: 1 - IoU(s, t) + \frac{|C \setminus (s \cup t)|}{|C|}, \quad C \text{ the hull of } s, t

    Rezatofighi et al.: Generalized Intersection over Union, CVPR 2019 (arXiv 1902.09630), alg. 1. It
    does not change when an axis is scaled. Computed by mmdet.
    """

    def per_pair(self, student: Tensor, teacher: Tensor) -> Tensor:
        return giou_loss(student, teacher, eps=self.eps, reduction='none')


@MODELS.register_module()
class CIoU(BoxLoss):
    r"""One minus the complete intersection over union of two boxes.

    .. math:: 1 - IoU + \frac{\|c_s - c_t\|^2}{d^2} + \alpha v, \quad
        v = \frac{4}{\pi^2} \Big(\arctan\frac{w_t}{h_t} - \arctan\frac{w_s}{h_s}\Big)^2, \quad
        \alpha = \frac{v}{1 - IoU + v}

    with the centres :math:`c` and the diagonal :math:`d` of the hull. Zheng et al.: Distance-IoU Loss,
    AAAI 2020 (arXiv 1911.08287); :math:`\alpha` is a constant to the gradient.
    """

    def per_pair(self, student: Tensor, teacher: Tensor) -> Tensor:
        # Not mmdet's ciou_loss: it drops alpha where the IoU is at most 0.5, adds eps to the union
        # instead of clamping it, and is NaN for equal boxes in pixels.
        overlap = bbox_overlaps(student, teacher, is_aligned=True, eps=self.eps)
        hull = torch.maximum(student[:, 2:], teacher[:, 2:]) - torch.minimum(
            student[:, :2], teacher[:, :2]
        )
        offset = (
            student[:, :2] + student[:, 2:] - teacher[:, :2] - teacher[:, 2:]
        )  # of centres, twice
        distance = offset.square().sum(-1) / 4 / hull.square().sum(-1).clamp(min=self.eps)
        width, height = (student[:, 2:] - student[:, :2]).unbind(-1)
        other_width, other_height = (teacher[:, 2:] - teacher[:, :2]).unbind(-1)
        angle = torch.atan2(width, height.clamp(min=self.eps))
        other_angle = torch.atan2(other_width, other_height.clamp(min=self.eps))
        shape = 4 / math.pi**2 * (angle - other_angle).square()
        with torch.no_grad():
            alpha = shape / (1 - overlap + shape).clamp(min=self.eps)
        return 1 - overlap + distance + alpha * shape
