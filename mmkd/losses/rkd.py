"""How entries lie to each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError


class RelationalLoss(nn.Module):
    """Base of the two losses below: relations among the entries of a batch.

    Park et al.: Relational Knowledge Distillation, CVPR 2019 (arXiv 1904.05068). Widths of student and
    teacher may differ. Costs grow with the square (distances) or cube (angles) of the entries.

    Args:
        normalize: Bring each entry to length 1 first, as the paper does for metric learning.
    """

    def __init__(self, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize

    def rows(self, student: Tensor, teacher: Tensor, weight: Tensor | None) -> list[Tensor]:
        """Entries that count, shape (n, D) each."""
        if len(student) != len(teacher):
            raise ConfigError(
                f'{type(self).__name__}: the student has {len(student)} entries, the teacher '
                f'{len(teacher)}'
            )
        sides = [side.float().flatten(1) for side in (student, teacher)]
        if weight is not None:
            sides = [side[weight > 0] for side in sides]
        return [F.normalize(side, dim=1) for side in sides] if self.normalize else sides


@MODELS.register_module()
class RKDDistance(RelationalLoss):
    r"""Smooth L1 of the distances between entries, each side's divided by their mean.

    .. math:: \frac{1}{N^2} \sum_{i,j} \ell_\delta(\psi^s_{ij}, \psi^t_{ij}), \quad
        \psi_{ij} = \|x_i - x_j\|_2 / \mu

    Sec. 3.2.1, with :math:`\mu` the mean over pairs of different entries. Entries that weigh 0 are left
    out; the others count alike.
    """

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Shape (N, …) each; weight of shape (N,); returns a scalar."""
        ours, theirs = self.rows(student, teacher, weight)
        if len(ours) < 2:
            return student.sum() * 0.0
        return F.smooth_l1_loss(_distances(ours), _distances(theirs))


@MODELS.register_module()
class RKDAngle(RelationalLoss):
    r"""Smooth L1 of the angles that entries form in threes.

    .. math:: \frac{1}{N^3} \sum_{i,j,k} \ell_\delta(\psi^s_{ijk}, \psi^t_{ijk}), \quad
        \psi_{ijk} = \cos \angle x_i x_j x_k

    Sec. 3.2.2. Entries that weigh 0 are left out; the others count alike.
    """

    def forward(self, student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
        """Shape (N, …) each; weight of shape (N,); returns a scalar."""
        ours, theirs = self.rows(student, teacher, weight)
        if len(ours) < 3:
            return student.sum() * 0.0
        return F.smooth_l1_loss(_cosines(ours), _cosines(theirs))


def _distances(rows: Tensor) -> Tensor:
    squared = (rows[:, None] - rows[None]).square().sum(-1)
    # Equal entries, an entry and itself among them, have no direction to be pushed in.
    apart = squared > 0
    distances = torch.where(apart, squared, 1.0).sqrt() * apart
    return distances / (distances.sum() / apart.sum().clamp(min=1)).clamp(min=1e-12)


def _cosines(rows: Tensor) -> Tensor:
    directions = F.normalize(rows[None] - rows[:, None], dim=-1)
    return directions @ directions.transpose(1, 2)
