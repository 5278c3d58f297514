"""Losses on the overlap of boxes.

Boxes are corners (x1, y1, x2, y2), in pixels or in fractions of the image. In fractions, a box of one
pixel has an area below 1e-6, so ``eps`` must be smaller than mmdet's default of 1e-6. The overlap of two
boxes without area is undefined; it counts as 0, even if they are equal.
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
    """Base class of the losses below: the weighted mean over pairs of boxes.

    Args:
        eps: Smallest divisor. It must be below the area of any box in fractions of the image.
    """

    #: The box format that the alignment must return.
    box_format = 'xyxy'

    def __init__(self, eps: float = 1e-9) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare boxes (x1, y1, x2, y2) of shape (N, 4).

        ``weight`` has the shape (N,). Returns a scalar.
        """
        if student.dim() != 2 or student.shape[-1] != 4:
            raise ConfigError(
                f'{type(self).__name__}: values must be boxes of shape (N, 4), got {tuple(student.shape)}; '
                f"with RoI boxes set align.coordinates='box'"
            )
        if not len(student):  # bbox_overlaps would return a tensor without a graph
            return student.sum()
        return weighted_mean(self.per_pair(student.float(), teacher.float()), weight)

    def per_pair(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of each pair of boxes, shape (N,)."""
        raise NotImplementedError


@MODELS.register_module()
class IoU(BoxLoss):
    r"""Negative logarithm of the intersection over union of two boxes.

    .. math:: -\log IoU(s, t)

    Yu et al., "UnitBox", ACM Multimedia 2016 (arXiv 1608.01471), eq. 3. Boxes that do not overlap have no
    gradient; with :class:`GIoU` they do.

    Args:
        eps: Smallest overlap. A smaller overlap is raised to this value.

    Examples:
        >>> import torch
        >>> from mmkd.losses import IoU
        >>> student = torch.tensor([[0.0, 0.0, 0.5, 1.0]])
        >>> teacher = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        >>> round(IoU()(student, teacher).item(), 4)  # -log(0.5)
        0.6931
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__(eps)

    def per_pair(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the negative logarithm of each overlap, shape (N,)."""
        # mmdet's iou_loss has a smallest union of 1e-6. In fractions of an image, two equal boxes of one
        # pixel would then not overlap fully.
        overlaps = bbox_overlaps(student, teacher, is_aligned=True, eps=1e-9)
        return -overlaps.clamp(min=self.eps).log()


@MODELS.register_module()
class GIoU(BoxLoss):
    r"""One minus the generalised intersection over union of two boxes, in [0, 2].

    .. math:: 1 - IoU(s, t) + \frac{|C \setminus (s \cup t)|}{|C|}

    where :math:`C` is the smallest box that encloses both. Rezatofighi et al., "Generalized Intersection
    over Union", CVPR 2019 (arXiv 1902.09630), alg. 1. The value does not change when an axis is scaled.
    Computed by mmdet.

    Args:
        eps: Smallest divisor. It must be below the area of any box in fractions of the image.

    Examples:
        >>> import torch
        >>> from mmkd.losses import GIoU
        >>> student = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        >>> GIoU()(student, student).item()
        0.0
        >>> round(GIoU()(student, student + 2).item(), 4)  # no overlap; the enclosing box has an area of 9
        1.7778
    """

    def per_pair(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return one minus each generalised overlap, shape (N,)."""
        return giou_loss(student, teacher, eps=self.eps, reduction='none')


@MODELS.register_module()
class CIoU(BoxLoss):
    r"""One minus the complete intersection over union of two boxes.

    .. math:: 1 - IoU + \frac{\|c_s - c_t\|^2}{d^2} + \alpha v, \quad
        v = \frac{4}{\pi^2} \Big(\arctan\frac{w_t}{h_t} - \arctan\frac{w_s}{h_s}\Big)^2, \quad
        \alpha = \frac{v}{1 - IoU + v}

    with the centres :math:`c` of the boxes and the diagonal :math:`d` of the smallest box that encloses
    both. Zheng et al., "Distance-IoU Loss", AAAI 2020 (arXiv 1911.08287). No gradient flows through
    :math:`\alpha`.

    Args:
        eps: Smallest divisor. It must be below the area of any box in fractions of the image.

    Examples:
        >>> import torch
        >>> from mmkd.losses import CIoU
        >>> student = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        >>> CIoU()(student, student).item()
        0.0
        >>> round(CIoU()(student, student + 2).item(), 4)  # no overlap: 1 + 8 / 18
        1.4444
    """

    def per_pair(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of each pair of boxes, shape (N,)."""
        # mmdet's ciou_loss drops alpha where the IoU is at most 0.5, adds eps to the union instead of
        # clamping it, and is NaN for equal boxes in pixels.
        overlap = bbox_overlaps(student, teacher, is_aligned=True, eps=self.eps)
        hull = torch.maximum(student[:, 2:], teacher[:, 2:]) - torch.minimum(
            student[:, :2], teacher[:, :2]
        )
        # Twice the offset between the centres.
        offset = student[:, :2] + student[:, 2:] - teacher[:, :2] - teacher[:, 2:]
        distance = offset.square().sum(-1) / 4 / hull.square().sum(-1).clamp(min=self.eps)
        width, height = (student[:, 2:] - student[:, :2]).unbind(-1)
        other_width, other_height = (teacher[:, 2:] - teacher[:, :2]).unbind(-1)
        angle = torch.atan2(width, height.clamp(min=self.eps))
        other_angle = torch.atan2(other_width, other_height.clamp(min=self.eps))
        shape = 4 / math.pi**2 * (angle - other_angle).square()
        with torch.no_grad():
            alpha = shape / (1 - overlap + shape).clamp(min=self.eps)
        return 1 - overlap + distance + alpha * shape
