"""Places around objects where a box is almost right."""

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
    """How valuable each anchor is for localisation: its overlap with the object it all but covers.

    Zheng et al.: Localization Distillation for Dense Object Detection, CVPR 2022 (arXiv 2102.12252),
    alg. 1, as in the code published with it. ATSS (Zhang et al., CVPR 2020, arXiv 1912.02424) calls an
    anchor positive above a threshold of each object: mean plus standard deviation of the overlaps of
    the anchors nearest to it on each level. An anchor is valuable for an object if its distance
    overlap (DIoU) lies below this threshold, but not below ``gamma`` times it.

    Args:
        anchors: Of each level, the same for every image, shape (A, 4) each.
        boxes: Objects of all images, corners in pixels, shape (G, 4).
        image: The image of each object, shape (G,).
        num_images: Number of images.
        gamma: Where the region begins, as a share of the threshold.
        candidates: How many nearest anchors of each level make the threshold.

    Returns:
        Of each level the largest overlap (IoU) with an object for which the anchor is valuable, 0 where
        there is none, shape (num_images, A).
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
