"""RetinaNet, FCOS, GFL and their relatives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from mmdet.models.dense_heads import YOLOXHead
from mmdet.models.detectors import SingleStageDetector
from mmdet.models.task_modules import DistancePointBBoxCoder
from mmdet.structures import SampleList
from mmdet.structures.bbox import distance2bbox, get_box_tensor
from torch import Tensor, nn

from ..errors import PathError, did_you_mean
from ..recorder import Recorder
from .base import Family


class SingleStage(Family):
    """Backbone and neck, dense head: RetinaNet, FCOS, ATSS, PAA, GFL, RTMDet, YOLOX.

    Both heads answer the same places of the same levels, so nothing has to be shared.

    Args:
        detector: A ``SingleStageDetector`` whose head lays priors (anchors or points) on its levels.
    """

    parts = dict(Family.parts, bbox_head='head')

    @classmethod
    def covers(cls, detector: nn.Module) -> bool:
        return isinstance(detector, SingleStageDetector) and hasattr(
            getattr(detector, 'bbox_head', None), 'prior_generator'
        )

    def run(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        parts: set[str],
        student: Recorder,
        scale: tuple[float, float] = (1.0, 1.0),
    ) -> dict[str, Any]:
        if parts:
            features = self.detector.extract_feat(inputs)
            if 'head' in parts:
                self.detector.bbox_head(features)
        return {}


def run_from(head: nn.Module, layer: str, levels: list[Tensor]) -> Any:
    """What a dense head gives with other maps in place of what one of its layers computes.

    Neither what comes before that layer nor the other towers of convolutions are computed; predictions
    of the latter are there, but mean nothing: zeros, where maps have a gradient that shows which those are.

    Args:
        head: A dense head.
        layer: Path of the layer in the head, with ``*`` where towers have one a level:
            ``cls_convs.2.gn``, ``cls_convs.*.1.bn``.
        levels: The maps, shape (N, C, H, W) a level; an activation that follows may change them in place.

    Returns:
        As the head's.

    Raises:
        PathError: The head has no such layer.
    """
    given = iter(levels)
    places = layers_at(head, layer)
    replaced = {module: lambda *_, **__: next(given) for module in places}
    skipped = [before for path in places.values() for before in _before(head, path, layer)]
    own = layer.split('.')[0]
    for name, tower in head.named_children():
        if name.endswith('_convs') and name != own:
            skipped += _layers(tower)
    replaced.update((module, _pass_on) for module in skipped)
    if all(level.requires_grad for level in levels) and torch.is_grad_enabled():
        predictors = [each for each in head.children() if type(each) is nn.Conv2d]
        replaced.update((each, partial(_predict, each)) for each in predictors)
    before = {module: module.__dict__.get('forward') for module in replaced}
    try:
        for module, forward in replaced.items():
            module.__dict__['forward'] = forward
        # Without gradient: what becomes of it is not used.
        return head([level.detach() for level in levels])
    finally:
        for module, forward in before.items():
            # What shadowed the class's method before does so again (teacher_speed.py).
            if forward is None:
                module.__dict__.pop('forward', None)
            else:
                module.__dict__['forward'] = forward


def layers_at(head: nn.Module, layer: str) -> dict[nn.Module, str]:
    """The modules that a path with or without a star names, and their paths.

    Raises:
        PathError: There is none.
    """
    modules = dict(head.named_modules())
    pattern = re.compile(re.escape(layer).replace(r'\*', r'[^.]+'))
    found = {module: name for name, module in modules.items() if pattern.fullmatch(name)}
    if not found:
        raise PathError(
            f"a {type(head).__name__} has no layer '{layer}'{did_you_mean(layer, modules)}"
        )
    return found


def _before(head: nn.Module, path: str, layer: str) -> Iterator[nn.Module]:
    """What a tower computes before the module at ``path``."""
    parent = head
    for depth, (name, wanted) in enumerate(zip(path.split('.'), layer.split('.'), strict=True)):
        # The children of the head are its towers, those at a star the levels: neither are a sequence.
        if depth > 0 and wanted != '*':
            for sibling, module in parent.named_children():
                if sibling == name:
                    break
                yield module
        parent = parent.get_submodule(name)


def _layers(tower: nn.Module) -> Iterator[nn.Module]:
    if isinstance(tower, nn.ModuleList):
        for module in tower:
            yield from _layers(module)
    else:
        yield tower


def _predict(layer: nn.Conv2d, value: Tensor) -> Tensor:
    """A prediction from maps with a gradient; zeros from others, which come from no tower."""
    if value.requires_grad:
        return nn.Conv2d.forward(layer, value)
    size = [
        (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for length, pad, dilation, kernel, stride in zip(
            value.shape[2:],
            layer.padding,
            layer.dilation,
            layer.kernel_size,
            layer.stride,
            strict=True,
        )
    ]
    return value.new_zeros(len(value), layer.out_channels, *size)


def _pass_on(value: Any, *_: Any, **__: Any) -> Any:
    return value


def boxes_of(head: nn.Module, level: int, values: Tensor) -> Tensor:
    """Boxes that a dense head predicts at every prior of a level.

    Args:
        head: The dense head, in the mode (training or not) in which it gave ``values``.
        level: Which of its levels.
        values: Its box output there, shape (N, numbers, H, W).

    Returns:
        Corners x1, y1, x2, y2 in pixels, shape (N, H * W * priors a place, 4).
    """
    generator = head.prior_generator
    stride = generator.strides[level]
    stride = stride if isinstance(stride, (int, float)) else stride[0]
    priors = generator.single_level_grid_priors(values.shape[2:], level, device=values.device)
    rows = values.permute(0, 2, 3, 1).float().reshape(len(values) * len(priors), -1)
    return decode_boxes(head, priors.repeat(len(values), 1), stride, rows).reshape(
        len(values), -1, 4
    )


def decode_boxes(head: nn.Module, priors: Tensor, stride: Tensor | float, rows: Tensor) -> Tensor:
    """Boxes that a dense head predicts at priors of any level.

    Args:
        head: The dense head, in the mode in which it gave ``rows``.
        priors: Anchors, shape (n, 4), or points, shape (n, 2).
        stride: Of the level of each prior, shape (n, 1), or of all.
        rows: Its box output there, shape (n, numbers).

    Returns:
        Corners x1, y1, x2, y2 in pixels, shape (n, 4).
    """
    if isinstance(head, YOLOXHead):
        strides = torch.as_tensor(stride, device=rows.device).expand(len(rows), 2)
        return head._bbox_decode(torch.cat([priors, strides], -1), rows[None])[0]
    if hasattr(head, 'integral'):  # distributions of distances, in strides
        centers = (priors[:, :2] + priors[:, 2:]) / 2
        return distance2bbox(centers, head.integral(rows) * stride)
    if isinstance(head.bbox_coder, DistancePointBBoxCoder):
        if head.training and getattr(head, 'norm_on_bbox', False):
            rows = rows * stride  # FCOS gives pixels in evaluation mode only
        return head.bbox_coder.decode(priors, rows)
    return get_box_tensor(head.bbox_coder.decode(priors, rows))


def encode_boxes(head: nn.Module, priors: Tensor, stride: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of :func:`decode_boxes`, of a head in evaluation mode that gives no distributions."""
    if isinstance(head, YOLOXHead):
        center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        return torch.cat([(center - priors) / stride, (size / stride).log()], -1)
    return head.bbox_coder.encode(priors, boxes)
