"""Custom torch operators with a translation to ONNX, for mmcv code that torch.export cannot trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmcv.ops import nms, roi_align
from torch import Tensor


@torch.library.custom_op('mmkd::suppress', mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression with an output size that does not depend on the data.

    Args:
        boxes: ``(images, N, 4)`` as x1, y1, x2, y2.
        scores: ``(images, N)``; boxes with a score of 0 or below are ignored.
        iou_threshold: If two boxes overlap by more, the one with the lower score is dropped.

    Returns:
        Whether each box is kept, ``(images, N)`` bool.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for one, score, mask in zip(boxes, scores, kept, strict=True):
        valid = (score > 0).nonzero().squeeze(1)
        mask[valid[nms(one[valid], score[valid], iou_threshold)[1]]] = True
    return kept


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


@suppress.register_vmap
def _(info: Any, in_dims: Any, boxes: Tensor, scores: Tensor, iou_threshold: float) -> Any:
    boxes, scores = boxes.movedim(in_dims[0], 0), scores.movedim(in_dims[1], 0)
    kept = suppress(boxes.flatten(0, 1), scores.flatten(0, 1), iou_threshold)
    return kept.unflatten(0, scores.shape[:2]), 0


@torch.library.custom_op('mmkd::pool_rois', mutates_args=())
def pool_rois(
    features: list[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: list[float],
    size: list[int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign of each RoI on its own level of a feature pyramid.

    Args:
        features: One map per level, ``(images, C, H, W)``.
        rois: ``(N, 5)``: index of the image, x1, y1, x2, y2.
        levels: Level of each RoI, ``(N,)``.
        scales: Per level, size of the map divided by size of the image.
        size: Height and width of the output.
        sampling_ratio: Samples per bin and axis; 0 adapts it to the size of the bin.
        aligned: Shift coordinates by half a pixel, as in RoIAlign with ``aligned=True``.

    Returns:
        ``(N, C, *size)``.
    """
    pooled = rois.new_zeros(len(rois), features[0].shape[1], *size)
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        own = levels == level
        pooled[own] = roi_align(
            feature, rois[own], tuple(size), scale, sampling_ratio, 'avg', aligned
        )
    return pooled


@pool_rois.register_fake
def _(
    features: list[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: list[float],
    size: list[int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return rois.new_empty(rois.shape[0], features[0].shape[1], *size)


@torch.library.custom_op('mmkd::concatenate', mutates_args=())
def concatenate(tensors: list[Tensor], dim: int) -> Tensor:
    """``torch.cat``; its own rule under ``torch.vmap`` would fix the batch size of the export."""
    return torch.cat(tensors, dim)


@concatenate.register_fake
def _(tensors: list[Tensor], dim: int) -> Tensor:
    return torch.cat(tensors, dim)


@concatenate.register_vmap
def _(info: Any, in_dims: Any, tensors: list[Tensor], dim: int) -> Any:
    parts = [
        each.expand(info.batch_size, *each.shape) if at is None else each.movedim(at, 0)
        for each, at in zip(tensors, in_dims[0], strict=True)
    ]
    return concatenate(parts, dim if dim < 0 else dim + 1), 0


@torch.library.custom_op('mmkd::name_size', mutates_args=())
def name_size(maps: Tensor) -> Tensor:
    """The same maps ``(images, C, H, W)`` with new symbols for height and width in torch.export.

    Otherwise every later size is a formula of the image size, and torch.export needs minutes to simplify it.
    """
    return maps.clone()


@name_size.register_fake
def _(maps: Tensor) -> Tensor:
    context = torch.library.get_ctx()
    height, width = (context.new_dynamic_size(min=1) for _ in range(2))
    return maps.new_empty(maps.shape[0], maps.shape[1], height, width)


def translations() -> dict[Callable, Callable]:
    """Translations of these operators for ``torch.onnx.export``; needs onnxscript."""
    from onnxscript import opset18 as op

    def suppress_onnx(boxes: Any, scores: Any, iou_threshold: float) -> Any:
        selected = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Constant(value_ints=[torch.iinfo(torch.int32).max]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[0.0]),
        )
        # Columns are image, class and box; there is only one class.
        index = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
        count = op.Shape(index, start=0, end=1)
        none = op.Expand(op.Constant(value_int=0), op.Shape(scores))
        kept = op.ScatterND(none, index, op.Expand(op.Constant(value_int=1), count))
        return op.Cast(kept, to=9)  # BOOL; few runtimes support ScatterND of booleans

    def pool_rois_onnx(
        features: Any,
        rois: Any,
        levels: Any,
        scales: list[float],
        size: list[int],
        sampling_ratio: int,
        aligned: bool,
    ) -> Any:
        shape = op.Concat(
            op.Shape(rois, start=0, end=1),
            op.Shape(features[0], start=1, end=2),
            op.Constant(value_ints=list(size)),
            axis=0,
        )
        pooled = op.Expand(op.Constant(value_float=0.0), shape)
        first, images, corners = ([0], [0, 1], [1, 5])
        for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
            own = op.NonZero(op.Equal(levels, op.Constant(value_int=level)))
            index = op.Squeeze(own, op.Constant(value_ints=first))
            chosen = op.Gather(rois, index, axis=0)
            of_image, box = (
                op.Slice(
                    chosen,
                    op.Constant(value_ints=[start]),
                    op.Constant(value_ints=[end]),
                    op.Constant(value_ints=[1]),
                )
                for start, end in (images, corners)
            )
            values = op.RoiAlign(
                feature,
                box,
                op.Cast(op.Squeeze(of_image, op.Constant(value_ints=[1])), to=7),  # INT64
                coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel',
                output_height=size[0],
                output_width=size[1],
                sampling_ratio=sampling_ratio,
                spatial_scale=scale,
            )
            pooled = op.ScatterND(pooled, op.Unsqueeze(index, op.Constant(value_ints=[1])), values)
        return pooled

    return {
        torch.ops.mmkd.suppress.default: suppress_onnx,
        torch.ops.mmkd.pool_rois.default: pool_rois_onnx,
        torch.ops.mmkd.name_size.default: lambda maps: op.Identity(maps),
        torch.ops.mmkd.concatenate.default: lambda tensors, dim: op.Concat(*tensors, axis=dim),
        # t() of a vector is the vector itself, and the exporter fails on one value with two names.
        torch.ops.aten.t.default: lambda value: (
            op.Transpose(value) if len(value.shape) == 2 else op.Identity(value)
        ),
    }
