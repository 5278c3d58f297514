"""One-to-one matching of the decoder queries of teacher and student."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..errors import ConfigError

# Threads that solve assignments, of which a step has one per layer and image.
SOLVERS = min(4, os.cpu_count() or 1)


class CostWeights(NamedTuple):
    """Weights of the terms of a cost; the defaults are DETR's (arXiv 2005.12872, sec. A.4)."""

    classes: float = 1.0
    l1: float = 5.0
    giou: float = 2.0


class Candidates(NamedTuple):
    """Queries to match, the teacher's and the student's, of all chosen layers.

    Args:
        p, q: Class probabilities of teacher and student, shape (layers, N, queries, width).
        their_boxes, boxes: cx, cy, w, h in fractions of the image, shape (layers, N, queries, 4).
        weights: Weight of each of the teacher's queries, shape (layers, N, queries).
    """

    p: Tensor
    q: Tensor
    their_boxes: Tensor
    boxes: Tensor
    weights: Tensor


@torch.no_grad()
def match(candidates: Candidates, weights: CostWeights) -> Tensor:
    """The student's query for each of the teacher's, on the host, shape (layers, N, teacher queries).

    Raises:
        ConfigError: The predictions of a model are not finite.
    """
    cost = costs(candidates, weights).cpu().numpy()
    try:
        return torch.from_numpy(assign(cost))
    except ValueError:
        raise _not_finite(candidates) from None


def costs(candidates: Candidates, weights: CostWeights) -> Tensor:
    """The cost of each pair, shape (layers, N, teacher queries, student queries)."""
    # Layer by layer: GIoU needs several times the memory of its result.
    return torch.stack([layer_costs(*layer, weights) for layer in zip(*candidates, strict=True)])


def layer_costs(
    p: Tensor,
    q: Tensor,
    their_boxes: Tensor,
    boxes: Tensor,
    query_weights: Tensor,
    cost_weights: CostWeights,
) -> Tensor:
    """The same of one layer, or of one image of it; arguments as of :class:`Candidates`."""
    overlaps = generalized_iou(bbox_cxcywh_to_xyxy(their_boxes), bbox_cxcywh_to_xyxy(boxes))
    cost = (
        cost_weights.giou * (1 - overlaps)
        + cost_weights.l1 * torch.cdist(their_boxes, boxes, p=1)
        - cost_weights.classes * (p @ q.transpose(-1, -2))
    )
    return cost * query_weights[..., None]


def generalized_iou(boxes: Tensor, others: Tensor, eps: float = 1e-6) -> Tensor:
    """Generalised intersection over union of all pairs (arXiv 1902.09630, alg. 1).

    Equal to mmdet's ``bbox_overlaps``, in half its time, which was most of the time of the costs: there x
    and y of a pair are adjacent in memory, so that operations do not vectorise over pairs.

    Args:
        boxes, others: x1, y1, x2, y2, shape (…, M, 4) and (…, N, 4).
        eps: Smallest divisor; mmdet's.

    Returns:
        Shape (…, M, N).
    """
    x1, y1, x2, y2 = boxes[..., :, None, :].unbind(-1)
    u1, v1, u2, v2 = others[..., None, :, :].unbind(-1)

    def shared_and_hull(low: Tensor, high: Tensor, low2: Tensor, high2: Tensor) -> list[Tensor]:
        shared = torch.minimum(high, high2).sub_(torch.maximum(low, low2)).clamp_(min=0)
        return [shared, torch.maximum(high, high2).sub_(torch.minimum(low, low2))]

    (overlap, hull), (height, hull_height) = (
        shared_and_hull(x1, x2, u1, u2),
        shared_and_hull(y1, y2, v1, v2),
    )
    overlap, hull = overlap.mul_(height), hull.mul_(hull_height).clamp_(min=eps)
    union = ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1)).sub_(overlap).clamp_(min=eps)
    return overlap.div_(union).sub_((hull - union).div_(hull))


def assign(cost: np.ndarray) -> np.ndarray:
    """The cheapest one-to-one matching of each cost matrix.

    Args:
        cost: Shape (…, rows, columns), no fewer columns than rows.

    Returns:
        The column of each row, shape (…, rows).

    Raises:
        ValueError: A cost is not finite.
    """
    if not np.isfinite(cost).all():
        raise ValueError('a cost is not finite')
    each = cost.reshape(-1, *cost.shape[-2:]).astype(np.float64)  # as scipy solves it
    if cost.shape[-2] == cost.shape[-1]:
        # Every column is taken, so the smallest cost of a column does not affect the choice. Without it,
        # scipy needs half the time where the predictions of all queries are alike.
        each -= each.min(axis=-2, keepdims=True)
    # scipy (from 1.12 on) lets other threads run while it solves.
    with ThreadPoolExecutor(SOLVERS) as pool:
        solved = list(pool.map(linear_sum_assignment, each))
    return np.stack([columns for _, columns in solved]).reshape(cost.shape[:-1])


def _not_finite(candidates: Candidates) -> ConfigError:
    """The model whose predictions are not finite, and what to do about it."""
    if torch.isfinite(candidates.their_boxes).all() and torch.isfinite(candidates.p).all():
        return ConfigError(
            "the student's predictions are not finite numbers: the run has diverged; lower the "
            'learning rate or loss_weight, or clip gradients with optim_wrapper.clip_grad'
        )
    return ConfigError(
        "the teacher's predictions are not finite numbers; its checkpoint is damaged"
    )
