"""Relations among the rows of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from .reduction import Mask, fill_invalid

# Two rows have one distance, which is its own mean; an angle takes three.
MIN_ROWS = 3


class RelationalLoss(nn.Module):
    """Base of the losses below: relations among rows, which are the images of feature maps.

    Park et al.: Relational Knowledge Distillation, CVPR 2019 (arXiv 1904.05068). Widths of student and
    teacher may differ. Memory grows with the square (distances) or cube (angles) of the rows.

    A first batch of fewer than 3 rows is an error, since all batches of that size, such as the maps of
    2 images per device, would contribute 0. Later ones may be smaller (the last of an epoch), and rows
    may be absent or weigh 0; where fewer than 3 remain, there is nothing to compare and the loss is 0.

    Args:
        normalize: Scale each row to length 1 first, as the paper does for metric learning.
    """

    def __init__(self, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self._had_enough_rows = False

    def forward(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None = None, mask: Mask = None
    ) -> Tensor:
        """Shape (N, …) each; weight (N,); of maps a mask of positions (N, H, W); returns a scalar."""
        name, count = type(self).__name__, len(student)
        if count != len(teacher):
            raise ConfigError(f'{name}: the student has {count} rows, the teacher {len(teacher)}')
        self._had_enough_rows |= count >= MIN_ROWS
        if count and not self._had_enough_rows:
            raise ConfigError(
                f'{name} needs at least {MIN_ROWS} rows per device, got {count}; of feature maps, rows are '
                f'images: set a larger train_dataloader.batch_size, or compare rows of proposals'
            )
        rows = [side.flatten(1) for side in fill_invalid(mask, student, teacher)]
        if mask is not None:
            weight = mask.flatten(1).any(1) * (1 if weight is None else weight)
        if weight is not None:
            rows = [side[weight > 0] for side in rows]
        if len(rows[0]) < MIN_ROWS:
            return rows[0][:0].sum()
        if self.normalize:
            rows = [F.normalize(side, dim=1) for side in rows]
        ours, theirs = map(self.relations, rows)
        return F.smooth_l1_loss(ours, theirs)

    def relations(self, rows: Tensor) -> Tensor:
        """The relations among rows, shape (n, D)."""
        raise NotImplementedError


@MODELS.register_module()
class RKDDistance(RelationalLoss):
    r"""Smooth L1 of the distances between rows, each side's divided by their mean.

    .. math:: \frac{1}{N^2} \sum_{i,j} \ell_\delta(\psi^s_{ij}, \psi^t_{ij}), \quad
        \psi_{ij} = \|x_i - x_j\|_2 / \mu

    Sec. 3.2.1, with :math:`\mu` the mean over pairs of different rows. Rows of weight 0 are left out;
    the others count alike.
    """

    def relations(self, rows: Tensor) -> Tensor:
        # Without the shortcut of a matrix product, which rounds small distances away. Equal rows, a row
        # and itself among them, get no gradient.
        distances = torch.cdist(rows, rows, compute_mode='donot_use_mm_for_euclid_dist')
        mean = distances.sum() / (distances > 0).sum().clamp(min=1)
        return distances / mean.clamp(min=1e-12)


@MODELS.register_module()
class RKDAngle(RelationalLoss):
    r"""Smooth L1 of the angles that rows form in threes.

    .. math:: \frac{1}{N^3} \sum_{i,j,k} \ell_\delta(\psi^s_{ijk}, \psi^t_{ijk}), \quad
        \psi_{ijk} = \cos \angle x_i x_j x_k

    Sec. 3.2.2. Rows of weight 0 are left out; the others count alike.
    """

    def relations(self, rows: Tensor) -> Tensor:
        directions = F.normalize(rows[None] - rows[:, None], dim=-1)
        return directions @ directions.transpose(1, 2)
