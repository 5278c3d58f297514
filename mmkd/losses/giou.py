"""Overlap of boxes."""

from __future__ import annotations

from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor, nn

from ..errors import ConfigError
from .reduction import weighted_mean


@MODELS.register_module()
class GIoU(nn.Module):
    r"""One minus the generalised intersection over union of two boxes, in [0, 2].

    .. math:: 1 - IoU(s, t) + \frac{|C \setminus (s \cup t)|}{|C|}, \quad C \text{ the hull of } s, t

    Rezatofighi et al.: Generalized Intersection over Union, CVPR 2019 (arXiv 1902.09630), alg. 1.
    It does not change when an axis is scaled, so boxes in pixels and in fractions are alike.

    Args:
        eps: Smallest area a division may see; below the area of any box in fractions of an image.
    """

    #: What the alignment must give, where it has a choice.
    box_format = 'xyxy'

    def __init__(self, eps: float = 1e-9) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Boxes (x1, y1, x2, y2), shape (N, 4) each; weight of shape (N,); returns a scalar."""
        if student.dim() != 2 or student.shape[-1] != 4:
            raise ConfigError(
                f'GIoU compares boxes of shape (N, 4), got {tuple(student.shape)}; with RoI boxes set '
                f"align.coordinates='box'"
            )
        if not len(student):  # bbox_overlaps would cut the graph
            return student.sum()
        overlaps = bbox_overlaps(
            student.float(), teacher.float(), mode='giou', is_aligned=True, eps=self.eps
        )
        return weighted_mean(1 - overlaps, weight)
