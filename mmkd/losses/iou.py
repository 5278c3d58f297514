"""Overlap of boxes, without regard to their distance."""

from __future__ import annotations

from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor, nn

from ..errors import ConfigError
from .reduction import weighted_mean


@MODELS.register_module()
class IoU(nn.Module):
    r"""The negative logarithm of the intersection over union of two boxes.

    .. math:: -\log IoU(s, t)

    Yu et al.: UnitBox, ACM Multimedia 2016 (arXiv 1608.01471), eq. 3. Boxes that do not overlap have no
    gradient; :class:`GIoU` gives them one.

    Args:
        eps: Overlaps below this are taken for it.
    """

    #: What the alignment must give, where it has a choice.
    box_format = 'xyxy'

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Boxes (x1, y1, x2, y2), shape (N, 4) each; weight of shape (N,); returns a scalar."""
        if student.dim() != 2 or student.shape[-1] != 4:
            raise ConfigError(
                f'IoU compares boxes of shape (N, 4), got {tuple(student.shape)}; with RoI boxes set '
                f"align.coordinates='box'"
            )
        if not len(student):  # bbox_overlaps would cut the graph
            return student.sum()
        overlaps = bbox_overlaps(student.float(), teacher.float(), is_aligned=True, eps=1e-9)
        return weighted_mean(-overlaps.clamp(min=self.eps).log(), weight)
