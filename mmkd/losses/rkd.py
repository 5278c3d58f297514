"""Relational knowledge distillation (RKD): distances and angles between the rows of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from .reduction import Mask, fill_invalid

# Two rows have one distance, which divided by the mean distance is always 1. An angle needs three rows.
MIN_ROWS = 3


class RelationalLoss(nn.Module):
    """Base class of the two losses below. They compare relations between rows; for maps, a row is an image.

    Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068). The widths of student
    and teacher may differ. Memory grows with the square (distances) or cube (angles) of the number of
    rows.

    A first batch of fewer than 3 rows is an error: all batches of that size, such as maps of 2 images
    per device, would contribute 0. Later batches may be smaller, such as the last one of an epoch. Rows
    of weight 0 are left out. The loss is 0 if fewer than 3 rows remain.

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
        """Compare N rows of any width, or maps of N images.

        ``weight`` has the shape (N,) and ``mask``, the valid positions of maps, the shape (N, H, W).
        Returns a scalar.
        """
        name, count = type(self).__name__, len(student)
        if count != len(teacher):
            raise ConfigError(
                f'{name}: student and teacher must have the same number of rows, got {count} and '
                f'{len(teacher)}'
            )
        self._had_enough_rows |= count >= MIN_ROWS
        if count and not self._had_enough_rows:
            raise ConfigError(
                f'{name}: a batch must have at least {MIN_ROWS} rows per device, got {count}; a feature map '
                f'has one row per image: set a larger train_dataloader.batch_size, or compare proposals'
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
        student_relations, teacher_relations = map(self.relations, rows)
        return F.smooth_l1_loss(student_relations, teacher_relations)

    def relations(self, rows: Tensor) -> Tensor:
        """Compute the relations between rows of shape (n, D)."""
        raise NotImplementedError


@MODELS.register_module()
class RKDDistance(RelationalLoss):
    r"""Smooth L1 loss of the pairwise distances between rows, each divided by the mean distance.

    .. math:: \frac{1}{N^2} \sum_{i,j} \ell_\delta(\psi^s_{ij}, \psi^t_{ij}), \quad
        \psi_{ij} = \|x_i - x_j\|_2 / \mu

    Sec. 3.2.1 of Park et al. (arXiv 1904.05068), where :math:`\mu` is the mean over pairs of different
    rows. Rows of weight 0 are left out; all others have the same weight.

    Args:
        normalize: Scale each row to length 1 first, as the paper does for metric learning.

    Examples:
        >>> import torch
        >>> from mmkd.losses import RKDDistance
        >>> loss = RKDDistance(normalize=False)
        >>> student = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
        >>> loss(student, 10 * student).item() < 1e-6  # the same distances, up to their scale
        True
        >>> loss(student, torch.rand(3, 256)).item() > 0  # widths may differ
        True
    """

    def relations(self, rows: Tensor) -> Tensor:
        """Return the distances divided by their mean, shape (n, n)."""
        # The default, a matrix product, rounds small distances to 0. Equal rows, and a row with itself,
        # have no gradient.
        distances = torch.cdist(rows, rows, compute_mode='donot_use_mm_for_euclid_dist')
        mean = distances.sum() / (distances > 0).sum().clamp(min=1)
        return distances / mean.clamp(min=1e-12)


@MODELS.register_module()
class RKDAngle(RelationalLoss):
    r"""Smooth L1 loss of the angles formed by every three rows.

    .. math:: \frac{1}{N^3} \sum_{i,j,k} \ell_\delta(\psi^s_{ijk}, \psi^t_{ijk}), \quad
        \psi_{ijk} = \cos \angle x_i x_j x_k

    Sec. 3.2.2 of Park et al. (arXiv 1904.05068). Rows of weight 0 are left out; all others have the same
    weight.

    Args:
        normalize: Scale each row to length 1 first, as the paper does for metric learning.

    Examples:
        >>> import torch
        >>> from mmkd.losses import RKDAngle
        >>> loss = RKDAngle(normalize=False)
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> loss(student, 5 * student).item() < 1e-6  # the same angles
        True
        >>> loss(student, student * torch.tensor([1.0, 3.0])).item() > 0
        True
    """

    def relations(self, rows: Tensor) -> Tensor:
        """Return the cosine of the angle at each row between every two others, shape (n, n, n)."""
        directions = F.normalize(rows[None] - rows[:, None], dim=-1)
        return directions @ directions.transpose(1, 2)
