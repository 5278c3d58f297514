"""PKD: feature maps compared by the Pearson correlation of their channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .reduction import Mask, require_maps, weighted_mean


@MODELS.register_module()
class PKD(nn.Module):
    r"""Half the squared distance between feature maps, with channels standardised over the batch.

    .. math:: \frac{1}{2m} \sum_{i=1}^m (\hat s_i - \hat t_i)^2, \quad
        \hat x = (x - \mu_c) / \sigma_c \text{ over all images and positions of a channel } c

    Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient", NeurIPS 2022 (arXiv 2207.02039). Except for the unbiased deviation, this is one minus
    the correlation of student and teacher in each channel. Magnitudes do not matter, so no channel
    dominates, and student and teacher may be detectors of different kinds.

    With a mask, the valid positions of the whole batch are standardised together and have the same
    weight. By the paper's definition, the loss of an image therefore depends on the other images of the
    batch.

    Examples:
        >>> import torch
        >>> from mmkd.losses import PKD
        >>> loss = PKD()
        >>> student = torch.rand(2, 16, 8, 8)
        >>> loss(student, 100 * student + 3).item() < 1e-6  # the same up to scale and offset
        True
        >>> round(loss(student, -student).item(), 1)  # one minus a correlation of -1
        2.0
    """

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Compare maps of shape (N, C, H, W).

        ``weight`` has the shape (N,) and ``mask``, the valid positions, the shape (N, H, W). Returns a
        scalar.
        """
        require_maps(self, student)
        if mask is not None:  # one row per valid position from here on
            student, teacher = (side.movedim(1, -1)[mask] for side in (student, teacher))
            weight = None if weight is None else weight[:, None, None].expand_as(mask)[mask]
        values = F.mse_loss(_standardised(student), _standardised(teacher), reduction='none')
        count = max(student.numel() // max(student.shape[1], 1), 1)
        unbiased = (count - 1) / count  # batch_norm divides by the biased deviation
        return weighted_mean(values, weight) / 2 * unbiased


def _standardised(maps: Tensor) -> Tensor:
    """Standardise each channel (axis 1) to mean 0 and biased deviation 1; a constant channel becomes 0.

    batch_norm stores only its input for the backward pass, less than any other formulation. The version
    in torch.nn.functional refuses a single position.
    """
    none = dict(weight=None, bias=None, running_mean=None, running_var=None)
    return torch.batch_norm(
        maps.float(), **none, training=True, momentum=0.0, eps=1e-12, cudnn_enabled=False
    )
