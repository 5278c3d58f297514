"""The valuable localization region (LD): anchors that almost cover an object."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor


def valuable_region(
    anchors: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    num_images: int,
    gamma: float = 0.25,
    candidates: int = 9,
) -> list[Tensor]:
    """Return the overlap of each anchor with the objects that it almost covers.

    Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022 (arXiv 2102.12252),
    alg. 1, as in the published code. ATSS (Zhang et al., CVPR 2020, arXiv 1912.02424) defines a threshold
    for each object: the mean plus the standard deviation of the overlaps with the nearest anchors on each
    level. Anchors above the threshold are positive. An anchor is valuable for an object if its distance
    overlap (DIoU) is below the threshold and at least ``gamma`` times the threshold.

    Args:
        anchors: The anchors of each level, the same for all images, shape (A, 4) each.
        boxes: The objects of all images, corners in pixels, shape (G, 4).
        image: The index of each object's image, shape (G,).
        num_images: Number of images.
        gamma: Lower limit of the region, as a fraction of the threshold.
        candidates: Number of nearest anchors per level that define the threshold.

    Returns:
        Per level, the largest overlap (IoU) of an anchor with the objects for which it is valuable, or 0,
        shape (num_images, A).
    """
    sizes = [len(level) for level in anchors]
    if not len(boxes):
        return [level.new_zeros(num_images, len(level)) for level in anchors]
    every = torch.cat(list(anchors))
    overlap = bbox_overlaps(boxes, every)
    centers, own = ((side[:, :2] + side[:, 2:]) / 2 for side in (every, boxes))
    apart = (own[:, None] - centers[None]).square().sum(-1)
    overlaps, start = [], 0
    for level in anchors:
        distance = apart[:, start : start + len(level)]
        nearest = distance.topk(min(candidates, len(level)), largest=False).indices + start
        overlaps.append(overlap.gather(1, nearest))
        start += len(level)
    near = torch.cat(overlaps, 1)
    threshold = (near.mean(1) + near.std(1))[:, None]
    low = torch.minimum(boxes[:, None, :2], every[None, :, :2])
    high = torch.maximum(boxes[:, None, 2:], every[None, :, 2:])
    hull = (high - low).square().sum(-1).clamp(min=1e-6)
    distance_overlap = overlap - apart / hull
    inside = (distance_overlap >= gamma * threshold) & (distance_overlap < threshold)
    value = overlap * inside
    best = value.new_zeros(num_images, len(every))
    best.scatter_reduce_(0, image[:, None].expand_as(value), value, 'amax')
    return list(best.split(sizes, 1))
