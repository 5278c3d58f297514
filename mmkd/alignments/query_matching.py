"""One-to-one matching of the decoder queries of teacher and student."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..errors import ConfigError


class CostWeights(NamedTuple):
    """The weights of the terms of a matching cost. The defaults are DETR's (arXiv 2005.12872, sec. A.4)."""

    classes: float = 1.0
    l1: float = 5.0
    giou: float = 2.0


class Candidates(NamedTuple):
    """The queries of teacher and student to match, of all selected layers.

    Args:
        teacher_probs, student_probs: Class probabilities, shape (layers, N, queries, width).
        teacher_boxes, student_boxes: cx, cy, w, h in fractions of the image, shape (layers, N, queries, 4).
        weights: Weight of each of the teacher's queries, shape (layers, N, queries).
    """

    teacher_probs: Tensor
    student_probs: Tensor
    teacher_boxes: Tensor
    student_boxes: Tensor
    weights: Tensor


@torch.no_grad()
def match(candidates: Candidates, weights: CostWeights) -> Tensor:
    """Return the student's query for each teacher query, shape (layers, N, teacher queries), on the host.

    Raises:
        ConfigError: The predictions of a model are not finite.
    """
    cost = costs(candidates, weights).cpu().numpy()
    try:
        return torch.from_numpy(assign(cost))
    except ValueError:
        raise _not_finite(candidates) from None


def costs(candidates: Candidates, weights: CostWeights) -> Tensor:
    """Return the cost of each pair, shape (layers, N, teacher queries, student queries)."""
    # Layer by layer: GIoU needs several times the memory of its result.
    return torch.stack([layer_costs(*layer, weights) for layer in zip(*candidates, strict=True)])


def layer_costs(
    teacher_probs: Tensor,
    student_probs: Tensor,
    teacher_boxes: Tensor,
    student_boxes: Tensor,
    query_weights: Tensor,
    cost_weights: CostWeights,
) -> Tensor:
    """Return the costs of one layer, or of one of its images; arguments as for :class:`Candidates`."""
    corners = (bbox_cxcywh_to_xyxy(each) for each in (teacher_boxes, student_boxes))
    overlaps = bbox_overlaps(*corners, mode='giou')
    cost = (
        cost_weights.giou * (1 - overlaps)
        + cost_weights.l1 * torch.cdist(teacher_boxes, student_boxes, p=1)
        - cost_weights.classes * (teacher_probs @ student_probs.transpose(-1, -2))
    )
    return cost * query_weights[..., None]


def assign(cost: np.ndarray) -> np.ndarray:
    """Return the one-to-one matching with the lowest cost, for each cost matrix.

    Args:
        cost: Shape (…, rows, columns), with at least as many columns as rows.

    Returns:
        The column of each row, shape (…, rows).

    Raises:
        ValueError: A cost is not finite.
    """
    if not np.isfinite(cost).all():
        raise ValueError('a cost is not finite')
    each = cost.reshape(-1, *cost.shape[-2:])
    columns = [linear_sum_assignment(matrix)[1] for matrix in each]
    return np.stack(columns).reshape(cost.shape[:-1])


def _not_finite(candidates: Candidates) -> ConfigError:
    """The error that names the model with non-finite predictions, and what to do."""
    if (
        torch.isfinite(candidates.teacher_boxes).all()
        and torch.isfinite(candidates.teacher_probs).all()
    ):
        return ConfigError(
            "the student's predictions must be finite numbers, got NaN or infinity: the run has diverged; "
            'lower the learning rate or loss_weight, or clip gradients with optim_wrapper.clip_grad'
        )
    return ConfigError(
        "the teacher's predictions must be finite numbers, got NaN or infinity; its checkpoint is damaged"
    )
