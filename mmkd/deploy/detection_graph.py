"""A detector as one module for torch.export: images in, boxes with scores and labels out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import torch
from mmdet.models import dense_heads, detectors
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor, nn

from ..errors import ConfigError
from ..method_override import MethodOverride
from ..types import Detector
from .onnx_operators import name_size
from .tracing import (
    MAX_PER_IMAGE,
    Found,
    SizeMode,
    each_image,
    pool,
    post_process,
    propose,
    traceable,
)

#: Detectors that can be exported, with their head.
SUPPORTED = {
    'FasterRCNN': 'RPNHead',
    'RetinaNet': 'RetinaHead',
    'GFL': 'GFLHead',
    'FCOS': 'FCOSHead',
    'ATSS': 'ATSSHead',
    'RTMDet': 'RTMDetHead',
    'YOLOX': 'YOLOXHead',
    'DETR': 'DETRHead',
    'DeformableDETR': 'DeformableDETRHead',
    'DINO': 'DINOHead',
}
QUERIES = ('DETR', 'DeformableDETR', 'DINO')
# mmdet's neck joins maps with those of twice the size, and pads no image.
MULTIPLES = {'RTMDet': 32}
# What a subclass of a head may not replace.
PREDICTING = 'predict predict_by_feat _predict_by_feat_single _bbox_post_process'.split()
OPERATORS = ('RoIAlign', 'MultiScaleDeformableAttention')  # of mmcv's, those that are translated


class DetectionGraph(nn.Module):
    """Preprocessing, detector and NMS.

    Args:
        detector: A detector of :data:`SUPPORTED`; set to evaluation mode.
        dtype: Of images.

    Raises:
        ConfigError: It is none, or has a part that cannot be exported.
    """

    def __init__(self, detector: Detector, dtype: torch.dtype = torch.uint8) -> None:
        super().__init__()
        # Known from here on, since torch.export shows the detector as one of another class while it traces.
        self.kind = check(detector)
        self.detector, self.dtype = detector.eval(), dtype
        find = {'FasterRCNN': _by_proposals} | dict.fromkeys(QUERIES, _by_queries)
        self.find = find.get(self.kind, _by_head)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: ``(images, height, width, 3)``, channels as the test pipeline loads them, 0 to 255.

        Returns:
            Boxes with scores ``(images, K, 5)`` as x1, y1, x2, y2, score in px of the input; labels
            ``(images, K)``; number of boxes ``(images,)``. Scores fall; behind the last box there are
            zeros, with label -1.
        """
        inputs = self.preprocess(images)
        sizes = dict(img_shape=tuple(images.shape[1:3]), batch_input_shape=tuple(inputs.shape[2:]))
        # One for all images. A DetDataSample would copy the symbols that stand for sizes.
        sample = SimpleNamespace(metainfo=sizes, **sizes)
        found = self.find(self.detector, inputs, [sample])
        real = found.scores > 0
        dets = torch.cat([found.bboxes, found.scores[..., None]], -1)
        dets = torch.where(real[..., None], dets, 0.0)
        return dets, torch.where(real, found.labels, -1), real.sum(1)

    def preprocess(self, images: Tensor) -> Tensor:
        """As the detector's ``data_preprocessor``, for images of one size."""
        settings = self.detector.data_preprocessor
        inputs = images.permute(0, 3, 1, 2)
        if settings._channel_conversion:
            inputs = inputs.flip(1)
        inputs = inputs.float()
        if settings._enable_normalize:
            inputs = (inputs - settings.mean) / settings.std
        divisor = settings.pad_size_divisor
        if divisor == 1:
            return inputs
        height, width = inputs.shape[2:]
        right, bottom = (
            (side + divisor - 1) // divisor * divisor - side for side in (width, height)
        )
        return nn.functional.pad(inputs, (0, right, 0, bottom), value=settings.pad_value)

    @property
    def multiple(self) -> int:
        """What height and width of images must be multiples of."""
        return MULTIPLES.get(self.kind, 1)

    def lowest_score(self) -> float:
        """The score that boxes must have."""
        test_cfg = self.detector.test_cfg
        return test_cfg.get('rcnn', test_cfg).get('score_thr', 0.0)

    def limit(self) -> int:
        """The number of boxes in the output, K."""
        test_cfg = self.detector.test_cfg
        if self.kind in QUERIES:
            return test_cfg.get('max_per_img', self.detector.num_queries)
        return test_cfg.get('rcnn', test_cfg).get('max_per_img', MAX_PER_IMAGE)


def _by_head(detector: Detector, inputs: Tensor, samples: list[SimpleNamespace]) -> Found:
    """What a single-stage detector predicts."""
    features, head = detector.extract_feat(inputs), detector.bbox_head
    overrides: dict[str, Callable] = {
        'predict_by_feat': each_image(head.predict_by_feat),
        '_bbox_post_process': post_process,
    }
    with traceable(), overriding(head, overrides):
        return head.predict(features, samples, rescale=False)[0]


def _by_queries(detector: Detector, inputs: Tensor, samples: list[SimpleNamespace]) -> Found:
    """What a transformer predicts."""
    features, head = detector.extract_feat(inputs), detector.bbox_head
    if isinstance(inputs.shape[2], torch.SymInt):
        features = tuple(map(name_size, features))
    with SizeMode():
        outputs = detector.forward_transformer(features, samples)
    # Decoder layers are first in the outputs.
    overrides = {'predict_by_feat': each_image(head.predict_by_feat, dim=1)}
    with traceable(), overriding(head, overrides):
        return head.predict(**outputs, batch_data_samples=samples, rescale=False)[0]


def _by_proposals(detector: Detector, inputs: Tensor, samples: list[SimpleNamespace]) -> Found:
    """What a two-stage detector predicts."""
    features = detector.extract_feat(inputs)
    rpn, roi = detector.rpn_head, detector.roi_head
    overrides = {
        'predict_by_feat': each_image(rpn.predict_by_feat),
        '_predict_by_feat_single': lambda **arguments: propose(rpn, **arguments),
    }
    with traceable(), overriding(rpn, overrides):
        proposals = rpn.predict(features, samples, rescale=False)[0]
    images, count = proposals.scores.shape
    index = torch.arange(images, device=inputs.device, dtype=inputs.dtype)
    index = index[:, None, None].expand(-1, count, 1)
    rois = torch.cat([index, proposals.bboxes], -1)
    extractor = roi.bbox_roi_extractor
    with overriding(extractor, {'forward': lambda maps, boxes: pool(extractor, maps, boxes)}):
        outputs = roi._bbox_forward(features, rois.flatten(0, 1))
    logits = outputs['cls_score'].unflatten(0, (images, count))
    # What is no proposal is background: its other classes have a probability of 0.
    background = logits.new_full((logits.shape[-1],), -1e4)
    background[-1] = 0
    logits = torch.where(proposals.scores[..., None] > 0, logits, background)
    deltas = outputs['bbox_pred'].unflatten(0, (images, count))
    predict = each_image(roi.bbox_head.predict_by_feat)
    metas = [sample.metainfo for sample in samples]
    with traceable():
        return predict(rois, logits, deltas, batch_img_metas=metas, rcnn_test_cfg=roi.test_cfg)[0]


def overriding(module: nn.Module, functions: dict[str, Callable]) -> ExitStack:
    """Methods of a module replaced by functions, while the context is open."""
    stack = ExitStack()
    for name, function in functions.items():
        stack.enter_context(MethodOverride(module, name, function))
    return stack


def check(detector: Detector) -> str:
    """Refuse what cannot be exported.

    Returns:
        The name of the detector's class in :data:`SUPPORTED`.

    Raises:
        ConfigError: With the name of the part.
    """
    kind = next((name for name in SUPPORTED if type(detector) is getattr(detectors, name)), None)
    if kind is None:
        raise ConfigError(
            f'export: {type(detector).__name__} cannot be exported; what can be: {", ".join(SUPPORTED)}'
        )
    head = detector.rpn_head if kind == 'FasterRCNN' else detector.bbox_head
    _check_class(head, getattr(dense_heads, SUPPORTED[kind]), PREDICTING, kind)
    if type(detector.data_preprocessor) is not DetDataPreprocessor:
        name = type(detector.data_preprocessor).__name__
        raise ConfigError(f'export: data_preprocessor must be a DetDataPreprocessor, got {name}')
    if kind == 'FasterRCNN':
        roi = detector.roi_head
        _check_class(roi, StandardRoIHead, ['predict', 'predict_bbox', '_bbox_forward'], kind)
        _check_class(roi.bbox_head, BBoxHead, PREDICTING[:3], kind)
        _check_class(roi.bbox_roi_extractor, SingleRoIExtractor, ['forward'], kind)
        if roi.with_mask:
            raise ConfigError(
                'export: roi_head: masks cannot be exported; train without a mask_head'
            )
    divisor = detector.data_preprocessor.pad_size_divisor
    if kind in QUERIES and divisor != 1:
        raise ConfigError(
            f'export: data_preprocessor.pad_size_divisor must be 1 for {kind}, got {divisor}'
        )
    _check_nms(detector, kind)
    _check_operators(detector)
    return kind


def _check_class(part: Any, base: type, methods: list[str], kind: str) -> None:
    changed = [
        name for name in methods if getattr(type(part), name, None) is not getattr(base, name, None)
    ]
    if not isinstance(part, base) or changed:
        raise ConfigError(
            f'export: the {type(part).__name__} of a {kind} cannot be exported; it must be a '
            f'{base.__name__} that keeps {", ".join(changed or methods)}'
        )


def _check_nms(detector: Detector, kind: str) -> None:
    if kind in QUERIES:
        return
    configs = {'test_cfg': detector.test_cfg}
    if kind == 'FasterRCNN':
        configs = {f'test_cfg.{part}': detector.test_cfg[part] for part in ('rpn', 'rcnn')}
    for key, config in configs.items():
        nms = config.get('nms') or {}
        name = nms.get('type', 'nms')
        other = set(nms) - {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
        if name != 'nms' or 'iou_threshold' not in nms:
            raise ConfigError(f"export: {key}.nms: {name} has no ONNX operator; set type='nms'")
        if other:
            raise ConfigError(f'export: {key}.nms: {", ".join(sorted(other))} cannot be exported')


def _check_operators(detector: Detector) -> None:
    for path, module in detector.named_modules():
        name = type(module).__name__
        if type(module).__module__.startswith('mmcv.ops') and name not in OPERATORS:
            raise ConfigError(
                f'export: {name} of module {path} has no ONNX operator; train a student without it'
            )
        if name == 'RoIAlign' and module.pool_mode != 'avg':
            raise ConfigError(f"export: {path}: pool_mode must be 'avg', got {module.pool_mode!r}")
