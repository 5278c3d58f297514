"""Attention transfer: the distance between spatial attention maps."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from .checks import require_positive
from .reduction import Mask, fill_invalid, masked_mean, require_maps, weighted_mean


@MODELS.register_module()
class AttentionTransfer(nn.Module):
    r"""Squared distance between spatial attention maps, which average over channels.

    .. math:: \frac{1}{HW} \Big\| \frac{Q_s}{\|Q_s\|_2} - \frac{Q_t}{\|Q_t\|_2} \Big\|_2^2, \quad
        Q = \frac1C \sum_c |x_c|^p

    The loss is the mean over images. Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR
    2017 (arXiv 1612.03928), sec. 3.1; squared as in the published code.

    No connector is needed: use ``align=dict(type='FeatureAlignment', same_channels=False)``.

    Args:
        p: The exponent. A larger value gives more weight to the strongest activations of a channel.

    Examples:
        >>> import torch
        >>> from mmkd.losses import AttentionTransfer
        >>> loss = AttentionTransfer(p=2.0)
        >>> student, teacher = torch.rand(2, 16, 8, 8), torch.rand(2, 64, 8, 8)
        >>> loss(student, teacher).shape
        torch.Size([])
        >>> loss(2 * student, student).item() < 1e-6  # the scale of the activations does not matter
        True
    """

    def __init__(self, p: float = 2.0) -> None:
        super().__init__()
        require_positive(p=p)
        self.p = p

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Compare maps of shape (N, C, H, W).

        ``weight`` has the shape (N,) and ``mask``, the valid positions, the shape (N, H, W). Returns a
        scalar.
        """
        require_maps(self, student)
        student_map, teacher_map = map(self._attention, fill_invalid(mask, student, teacher))
        return weighted_mean(masked_mean((student_map - teacher_map).square(), mask), weight)

    def _attention(self, maps: Tensor) -> Tensor:
        # For p < 1 the gradient of x ** p is infinite at 0.
        attention = maps.abs().clamp(min=1e-12).pow(self.p).mean(1, keepdim=True)
        return F.normalize(attention.flatten(1), dim=1).view_as(attention)
