"""Focal and global distillation (FGD): the focal part."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from .checks import require_positive
from .reduction import Mask, fill_invalid, require_maps, weighted_mean


@MODELS.register_module()
class FGD(nn.Module):
    r"""Squared distance between maps, with separate weights for foreground and background.

    .. math:: \alpha \sum_{x \in fg} \frac{d_x}{A_x} + \frac{\beta}{|bg|} \sum_{x \in bg} d_x
        + \gamma \big(\|S^s - S^t\|_1 + \|C^s - C^t\|_1\big), \quad
        d_x = S^t_x \sum_c C^t_c (s_{cx} - t_{cx})^2

    The loss is the mean over images. The distance is weighted by the teacher's attention: over positions
    :math:`S = HW \, \mathrm{softmax}_x(\frac1C \sum_c |x_{cx}| / \tau)` and over channels
    :math:`C = C \, \mathrm{softmax}_c(\frac1{HW} \sum_x |x_{cx}| / \tau)`. The foreground is the area of
    the labelled boxes. :math:`A_x` is the number of positions of the smallest box that covers position x.

    This is the focal part of Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR
    2022 (arXiv 2111.11837), eq. 2 to 10. The global part is ``MSE(reduction='sum')`` after a
    :class:`mmkd.connectors.GlobalContextConnector` on both sides.

    ``align=dict(type='ForegroundFeatureAlignment')`` provides the labelled boxes. The sums over positions
    and channels are large, so the weights must be small; the paper gives values for each kind of detector.

    Args:
        alpha: Weight of the foreground.
        beta: Weight of the background.
        gamma: Weight of the distance between the attentions of student and teacher.
        tau: Temperature of the attention.

    Examples:
        >>> import torch
        >>> from mmkd.losses import FGD
        >>> loss = FGD(alpha=1e-3, beta=5e-4, gamma=1e-3, tau=0.5)
        >>> student, teacher = torch.rand(2, 16, 8, 8), torch.rand(2, 16, 8, 8)
        >>> foreground = torch.zeros(2, 8, 8)
        >>> foreground[:, 2:4, 2:6] = 1 / 8  # one box that covers 2 x 4 positions
        >>> loss(student, teacher, target=foreground).item() > 0
        True
        >>> loss(teacher, teacher, target=foreground).item()
        0.0
    """

    needs_target = 'foreground'

    def __init__(
        self, alpha: float = 1e-3, beta: float = 5e-4, gamma: float = 1e-3, tau: float = 0.5
    ) -> None:
        super().__init__()
        require_positive(tau=tau)
        self.alpha, self.beta, self.gamma, self.tau = alpha, beta, gamma, tau

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None = None,
        mask: Mask = None,
        *,
        target: Tensor,
    ) -> Tensor:
        """Compare maps.

        Args:
            student: Maps, shape (N, C, H, W).
            teacher: Maps of the same shape.
            weight: Weight of each image, shape (N,).
            mask: Valid positions, shape (N, H, W). Only these count as background and in HW.
            target: One over the area (in positions) of the smallest box that covers a position, and 0 in
                the background, shape (N, H, W).

        Returns:
            A scalar.
        """
        require_maps(self, student)
        student, teacher = fill_invalid(mask, student, teacher)
        positions, channels = self._attention(teacher, mask)
        distance = (student - teacher).square()
        distance = torch.einsum('nchw,nc->nhw', distance, channels) * positions
        background = (target == 0).float()
        if mask is not None:
            background = background * mask
        background = background / background.sum((1, 2), keepdim=True).clamp(min=1)
        focal = (distance * (self.alpha * target + self.beta * background)).sum((1, 2))
        student_positions, student_channels = self._attention(student, mask)
        attention = (student_positions - positions).abs().sum((1, 2))
        attention = attention + (student_channels - channels).abs().sum(1)
        return weighted_mean(focal + self.gamma * attention, weight)

    def _attention(self, maps: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """Attention of positions, shape (N, H, W), and of channels, shape (N, C); each has a mean of 1.

        The maps must be 0 at positions outside the mask.
        """
        size = maps.abs()
        of_positions, of_channels = size.mean(1) / self.tau, size.mean((2, 3))
        count: Tensor | int = size[0, 0].numel()
        if mask is not None:
            of_positions = of_positions.masked_fill(~mask, -1e30)  # attention 0
            valid = mask.sum((1, 2))[:, None, None]
            of_channels, count = of_channels * count / valid[:, 0].clamp(min=1), valid
        positions = of_positions.flatten(1).softmax(1).view_as(of_positions)
        channels = (of_channels / self.tau).softmax(1)
        return positions * count, channels * channels.shape[1]
