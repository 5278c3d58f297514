"""Make mmdet's prediction traceable for torch.export.

mmdet processes one image after the other, and keeps only boxes above a threshold. An exported graph has a
fixed structure, and the sizes of its tensors depend only on the size of the input. So all images are
processed at once (:func:`each_image`), and a box that mmdet would drop is kept with a score of 0 or below.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.layers import multiclass_nms
from mmdet.models.utils import filter_scores_and_topk
from mmdet.structures.bbox import get_box_wh
from mmengine.structures import InstanceData
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ..method_override import MethodOverride
from ..types import Detector
from .onnx_operators import concatenate, pool_rois, suppress

# Boxes per image if test_cfg has no max_per_img, as in YOLOX.
MAX_PER_IMAGE = 300
DROPPED = -1.0  # score of boxes that mmdet would drop


class TracedInstances(SimpleNamespace):
    """Replacement of InstanceData, which needs the length of its values as a number, not as a symbol."""

    def pop(self, name: str) -> Any:
        """Remove a field and return it."""
        return self.__dict__.pop(name)


class ImageMode(TorchFunctionMode):
    """Replaces operations of mmdet on one image by ones that work under ``torch.vmap``."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.cat:
            tensors, dim, *_ = (*args, kwargs.get('dim', 0))
            return concatenate(list(tensors), dim)
        if func is torch.Tensor.clamp_:
            # With an in-place clamp of a slice, torch.vmap would fix the batch size.
            return args[0].copy_(args[0].clamp(*args[1:], **kwargs))
        if func is torch.Tensor.__getitem__ and is_mask(args[1]):
            # Set values to 0 instead of dropping them; boxes with a score of 0 are ignored.
            values, mask = args
            mask = mask.reshape(mask.shape + (1,) * (values.dim() - mask.dim()))
            return torch.where(mask, values, torch.zeros_like(values))
        return func(*args, **kwargs)


def is_mask(index: Any) -> bool:
    """Whether an index is a boolean tensor, which selects a number of values that depends on the data."""
    return isinstance(index, Tensor) and index.dtype == torch.bool


class SizeMode(TorchFunctionMode):
    """Tracks the map sizes that deformable attention stores in a tensor and reads back as numbers.

    The sizes are symbols of the export, so the mode stores them together with the tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        # Tensor and its sizes by the id of the tensor; storing the tensor keeps its id from being reused.
        self.known: dict[int, tuple[Tensor, np.ndarray]] = {}

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch._shape_as_tensor:
            sides = list(args[0].shape)
            tensor = torch.stack([torch.scalar_tensor(side, dtype=torch.int64) for side in sides])
            return self.remember(tensor, np.array(sides, object))
        if func is torch.Tensor.__len__ and isinstance(args[0].shape[0], torch.SymInt):
            # DINO compares it with the number of queries, and then adds 0.
            return 0
        if func is torch.linspace:
            # Centers of the positions of a map, 1 apart; ONNX has no linspace of symbolic length.
            start, _, steps = args
            return torch.arange(steps, **kwargs) + start
        numbers = self.numbers(args[0]) if args else None
        if numbers is None:
            return func(*args, **kwargs)
        if func is torch.Tensor.__bool__:
            return bool(numbers)
        if func is torch.Tensor.unbind:
            if numbers.ndim == 1:
                return tuple(numbers)
            return tuple(map(self.remember, func(*args, **kwargs), numbers))
        found = func(*args, **kwargs)
        if func in COUNTED:
            others = [self.numbers(each, each) for each in args[1:]]
            self.remember(found, np.asarray(COUNTED[func](numbers, *others), object))
        return found

    def numbers(self, value: Any, default: Any = None) -> Any:
        """The sizes stored for a tensor or for a list of tensors; ``default`` if there are none."""
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            parts = [self.numbers(each) for each in value]
            return default if any(each is None for each in parts) else parts
        return self.known[id(value)][1] if id(value) in self.known else default

    def remember(self, tensor: Tensor, numbers: np.ndarray) -> Tensor:
        """Store the sizes of a tensor; returns the tensor."""
        self.known[id(tensor)] = (tensor, numbers)
        return tensor


# Torch operations on tensors of sizes, and the same operations in numpy.
COUNTED: dict[Callable, Callable] = {
    torch.cat: lambda parts, dim=0: np.concatenate(parts, dim),
    torch.Tensor.__getitem__: lambda numbers, index: numbers[index],
    torch.Tensor.to: lambda numbers, *_: numbers,
    torch.Tensor.view: lambda numbers, *shape: numbers.reshape(shape),
    torch.Tensor.mul: lambda numbers, other: numbers * other,
    torch.Tensor.sum: lambda numbers: numbers.sum(),
    torch.Tensor.__eq__: lambda numbers, other: numbers == other,
}


def each_image(predict_by_feat: Callable, dim: int = 0) -> Callable:
    """Vectorize the ``predict_by_feat`` of a head over images.

    Args:
        predict_by_feat: The method of mmdet's head.
        dim: Dimension of the images in its inputs.

    Returns:
        A function with the same arguments. Its list has one element for all images; the first dimension
        of the values of that element is the image.
    """

    def run(*outputs: Any, batch_img_metas: list[dict], **options: Any) -> list[TracedInstances]:
        def one(*values: Any) -> tuple[Tensor, Tensor, Tensor]:
            alone = tree_map(lambda value: value.unsqueeze(dim), values)
            found = predict_by_feat(*alone, batch_img_metas=batch_img_metas, **options)[0]
            return found.bboxes, found.scores, found.labels

        with ImageMode():
            boxes, scores, labels = torch.vmap(one, in_dims=dim)(*outputs)
        return [TracedInstances(bboxes=boxes, scores=scores, labels=labels)]

    return run


def top_scores(
    scores: Tensor, score_thr: float, topk: int, results: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Same as mmdet's ``filter_scores_and_topk``, but always returns ``topk`` values."""
    count = scores.shape[1]
    flat = torch.where(scores > score_thr, scores, DROPPED).reshape(-1)
    # Padded, as the smallest map of the smallest image may have fewer than topk positions.
    flat, index = torch.cat([flat, flat.new_full((topk,), DROPPED)]).topk(topk)
    index = torch.where(flat > 0, index, 0)
    rows = index // count
    return flat, index % count, rows, {name: value[rows] for name, value in results.items()}


def keep_boxes(
    boxes: Tensor, scores: Tensor, labels: Tensor, groups: Tensor, nms: dict, limit: int
) -> TracedInstances:
    """mmcv's ``batched_nms`` on one image, then the top ``limit`` boxes by score.

    Args:
        boxes: ``(N, 4)``.
        scores: ``(N,)``; boxes with a score of 0 or below are ignored.
        labels: ``(N,)``.
        groups: ``(N,)``; boxes of different groups do not suppress each other.
        nms: Config of NMS.
        limit: Number of boxes of the result; unused rows have scores of 0 or below.
    """
    valid = scores > 0
    apart = boxes
    if not nms.get('class_agnostic', False):
        # Shifted by group so that boxes of different groups do not overlap, as in batched_nms.
        furthest = torch.where(valid[:, None], boxes, 0).max()
        apart = boxes + (groups.to(boxes) * (furthest + 1))[:, None]
    kept = suppress(apart[None], torch.where(valid, scores, DROPPED)[None], nms['iou_threshold'])[0]
    scores = torch.where(kept, scores, DROPPED)
    scores, index = torch.cat([scores, scores.new_full((limit,), DROPPED)]).topk(limit)
    index = torch.where(scores > 0, index, 0)
    return TracedInstances(bboxes=boxes[index], scores=scores, labels=labels[index])


def post_process(
    results: TracedInstances,
    cfg: dict,
    rescale: bool = False,
    with_nms: bool = True,
    img_meta: dict | None = None,
) -> TracedInstances:
    """Same as ``_bbox_post_process`` of mmdet's dense heads, which is the same in all of them."""
    scores = results.scores
    if hasattr(results, 'score_factors'):
        scores = scores * results.score_factors
    if cfg.get('min_bbox_size', -1) >= 0:
        width, height = get_box_wh(results.bboxes)
        large = (width > cfg['min_bbox_size']) & (height > cfg['min_bbox_size'])
        scores = torch.where(large, scores, DROPPED)
    groups = getattr(results, 'level_ids', results.labels)
    limit = cfg.get('max_per_img', MAX_PER_IMAGE)
    return keep_boxes(results.bboxes, scores, results.labels, groups, cfg['nms'], limit)


def propose(head: Detector, **arguments: Any) -> TracedInstances:
    """Same as ``RPNHead._predict_by_feat_single``, but always keeps ``nms_pre`` candidates per level.

    Apart from that and from NMS per level, the method equals that of other dense heads with one class.
    """
    cfg = arguments.pop('cfg') or head.test_cfg

    def by_level(results: TracedInstances, cfg: dict, **options: Any) -> TracedInstances:
        index = torch.arange(len(results.scores), device=results.scores.device)
        results.level_ids = index // cfg['nms_pre']
        return post_process(results, cfg, **options)

    with MethodOverride(head, '_bbox_post_process', by_level):
        return BaseDenseHead._predict_by_feat_single(head, cfg=cfg, **arguments)


def keep_classes(
    boxes: Tensor,
    scores: Tensor,
    score_thr: float,
    nms: dict,
    limit: int,
    box_dim: int = 4,
) -> tuple[Tensor, Tensor]:
    """Same as mmdet's ``multiclass_nms``, with ``limit`` rows."""
    count = scores.shape[1] - 1
    boxes = boxes.reshape(len(scores), -1, box_dim).expand(-1, count, -1).reshape(-1, box_dim)
    scores = scores[:, :-1].reshape(-1)
    labels = torch.arange(count, device=scores.device).repeat(len(scores) // count)
    scores = torch.where(scores > score_thr, scores, DROPPED)
    found = keep_boxes(boxes, scores, labels, labels, nms, limit)
    return torch.cat([found.bboxes, found.scores[:, None]], 1), found.labels


def pool(extractor: Detector, features: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Same as ``SingleRoIExtractor``; one operator for all levels avoids sizes that depend on the data."""
    layer = extractor.roi_layers[0]
    return pool_rois(
        list(features),
        rois,
        extractor.map_roi_levels(rois, len(features)),
        [each.spatial_scale for each in extractor.roi_layers],
        list(layer.output_size),
        layer.sampling_ratio,
        layer.aligned,
    )


# Functions and classes that mmdet's modules import by name, and their replacements.
REPLACEMENTS = (
    (filter_scores_and_topk, top_scores),
    (multiclass_nms, keep_classes),
    (InstanceData, TracedInstances),
)


@contextmanager
def traceable() -> Iterator[None]:
    """Replace functions in all modules of mmdet by traceable ones, within a ``with`` block."""
    modules = [vars(each) for name, each in sys.modules.items() if name.startswith('mmdet.models')]
    found = [
        (namespace, name, before, after)
        for namespace in modules
        for name, value in namespace.items()
        for before, after in REPLACEMENTS
        if value is before
    ]
    for namespace, name, _, after in found:
        namespace[name] = after
    try:
        yield
    finally:
        for namespace, name, before, _ in found:
            namespace[name] = before
