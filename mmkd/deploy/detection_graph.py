"""A detector as one module for torch.export, from images to boxes with scores and labels."""

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
    SizeMode,
    TracedInstances,
    each_image,
    pool,
    post_process,
    propose,
    traceable,
)

#: Detectors that can be exported, and the class of their head.
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
QUERY_DETECTORS = ('DETR', 'DeformableDETR', 'DINO')
# Required multiples of image sizes: the neck concatenates upsampled maps, and mmdet pads no image here.
SIZE_MULTIPLES = {'RTMDet': 32}
# Methods that a subclass of a head must not override.
PREDICT_METHODS = 'predict predict_by_feat _predict_by_feat_single _bbox_post_process'.split()
TRANSLATED_OPERATORS = ('RoIAlign', 'MultiScaleDeformableAttention')  # operators of mmcv


class DetectionGraph(nn.Module):
    """Preprocessing, detector and NMS as one module.

    Args:
        detector: A detector of :data:`SUPPORTED`; it is set to evaluation mode.
        dtype: Data type of the images.

    Raises:
        ConfigError: The detector is not supported, or contains a module that cannot be exported.
    """

    def __init__(self, detector: Detector, dtype: torch.dtype = torch.uint8) -> None:
        super().__init__()
        # Stored now, as the detector has another class while torch.export traces it.
        self.kind = check_exportable(detector)
        self.detector, self.dtype = detector.eval(), dtype
        predict = {'FasterRCNN': _predict_two_stage} | dict.fromkeys(
            QUERY_DETECTORS, _predict_queries
        )
        self._predict = predict.get(self.kind, _predict_single_stage)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: ``(images, height, width, 3)``, channels in the order of the test pipeline, 0 to 255.

        Returns:
            Boxes with scores ``(images, K, 5)``: x1, y1, x2, y2 in px of the input, score; labels
            ``(images, K)``; number of boxes ``(images,)``. Scores are in descending order. Unused rows
            contain zeros and label -1.
        """
        inputs = self.preprocess(images)
        sizes = dict(img_shape=tuple(images.shape[1:3]), batch_input_shape=tuple(inputs.shape[2:]))
        # One sample for all images. A DetDataSample would copy the symbolic sizes.
        sample = SimpleNamespace(metainfo=sizes, **sizes)
        found = self._predict(self.detector, inputs, [sample])
        real = found.scores > 0
        dets = torch.cat([found.bboxes, found.scores[..., None]], -1)
        dets = torch.where(real[..., None], dets, 0.0)
        return dets, torch.where(real, found.labels, -1), real.sum(1)

    def preprocess(self, images: Tensor) -> Tensor:
        """Preprocess images of one size as the detector's ``data_preprocessor`` does."""
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
        """Height and width of images must be multiples of this number."""
        return SIZE_MULTIPLES.get(self.kind, 1)

    def lowest_score(self) -> float:
        """The minimum score of boxes."""
        test_cfg = self.detector.test_cfg
        return test_cfg.get('rcnn', test_cfg).get('score_thr', 0.0)

    def limit(self) -> int:
        """The maximum number of boxes per image, K."""
        test_cfg = self.detector.test_cfg
        if self.kind in QUERY_DETECTORS:
            return test_cfg.get('max_per_img', self.detector.num_queries)
        return test_cfg.get('rcnn', test_cfg).get('max_per_img', MAX_PER_IMAGE)


def _predict_single_stage(
    detector: Detector, inputs: Tensor, samples: list[SimpleNamespace]
) -> TracedInstances:
    """Predictions of a single-stage detector."""
    features, head = detector.extract_feat(inputs), detector.bbox_head
    overrides: dict[str, Callable] = {
        'predict_by_feat': each_image(head.predict_by_feat),
        '_bbox_post_process': post_process,
    }
    with traceable(), override_methods(head, overrides):
        return head.predict(features, samples, rescale=False)[0]


def _predict_queries(
    detector: Detector, inputs: Tensor, samples: list[SimpleNamespace]
) -> TracedInstances:
    """Predictions of a DETR-like detector."""
    features, head = detector.extract_feat(inputs), detector.bbox_head
    if isinstance(inputs.shape[2], torch.SymInt):
        features = tuple(map(name_size, features))
    with SizeMode():
        outputs = detector.forward_transformer(features, samples)
    # The first dimension of the outputs is the decoder layer.
    overrides = {'predict_by_feat': each_image(head.predict_by_feat, dim=1)}
    with traceable(), override_methods(head, overrides):
        return head.predict(**outputs, batch_data_samples=samples, rescale=False)[0]


def _predict_two_stage(
    detector: Detector, inputs: Tensor, samples: list[SimpleNamespace]
) -> TracedInstances:
    """Predictions of a two-stage detector."""
    features = detector.extract_feat(inputs)
    rpn, roi = detector.rpn_head, detector.roi_head
    overrides = {
        'predict_by_feat': each_image(rpn.predict_by_feat),
        '_predict_by_feat_single': lambda **arguments: propose(rpn, **arguments),
    }
    with traceable(), override_methods(rpn, overrides):
        proposals = rpn.predict(features, samples, rescale=False)[0]
    images, count = proposals.scores.shape
    index = torch.arange(images, device=inputs.device, dtype=inputs.dtype)
    index = index[:, None, None].expand(-1, count, 1)
    rois = torch.cat([index, proposals.bboxes], -1)
    extractor = roi.bbox_roi_extractor
    with override_methods(extractor, {'forward': lambda maps, boxes: pool(extractor, maps, boxes)}):
        outputs = roi._bbox_forward(features, rois.flatten(0, 1))
    logits = outputs['cls_score'].unflatten(0, (images, count))
    # Unused proposals are background: their other classes have a probability of 0.
    background = logits.new_full((logits.shape[-1],), -1e4)
    background[-1] = 0
    logits = torch.where(proposals.scores[..., None] > 0, logits, background)
    deltas = outputs['bbox_pred'].unflatten(0, (images, count))
    predict = each_image(roi.bbox_head.predict_by_feat)
    metas = [sample.metainfo for sample in samples]
    with traceable():
        return predict(rois, logits, deltas, batch_img_metas=metas, rcnn_test_cfg=roi.test_cfg)[0]


def override_methods(module: nn.Module, functions: dict[str, Callable]) -> ExitStack:
    """Replace methods of a module by functions within a ``with`` block."""
    stack = ExitStack()
    for name, function in functions.items():
        stack.enter_context(MethodOverride(module, name, function))
    return stack


def check_exportable(detector: Detector) -> str:
    """Check that a detector can be exported.

    Returns:
        The name of its class in :data:`SUPPORTED`.

    Raises:
        ConfigError: The detector cannot be exported; the message names the module that is the cause.
    """
    kind = next((name for name in SUPPORTED if type(detector) is getattr(detectors, name)), None)
    if kind is None:
        raise ConfigError(
            f'export: {type(detector).__name__} cannot be exported; supported: {", ".join(SUPPORTED)}'
        )
    head = detector.rpn_head if kind == 'FasterRCNN' else detector.bbox_head
    _check_class(head, getattr(dense_heads, SUPPORTED[kind]), PREDICT_METHODS, kind)
    if type(detector.data_preprocessor) is not DetDataPreprocessor:
        name = type(detector.data_preprocessor).__name__
        raise ConfigError(f'export: data_preprocessor must be a DetDataPreprocessor, got {name}')
    if kind == 'FasterRCNN':
        roi = detector.roi_head
        _check_class(roi, StandardRoIHead, ['predict', 'predict_bbox', '_bbox_forward'], kind)
        _check_class(roi.bbox_head, BBoxHead, PREDICT_METHODS[:3], kind)
        _check_class(roi.bbox_roi_extractor, SingleRoIExtractor, ['forward'], kind)
        if roi.with_mask:
            raise ConfigError(
                'export: roi_head: masks cannot be exported; train without a mask_head'
            )
    divisor = detector.data_preprocessor.pad_size_divisor
    if kind in QUERY_DETECTORS and divisor != 1:
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
            f'{base.__name__} and must not override {", ".join(changed or methods)}'
        )


def _check_nms(detector: Detector, kind: str) -> None:
    if kind in QUERY_DETECTORS:
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
            raise ConfigError(
                f'export: {key}.nms: {", ".join(sorted(other))} cannot be exported; remove it'
            )


def _check_operators(detector: Detector) -> None:
    for path, module in detector.named_modules():
        name = type(module).__name__
        if type(module).__module__.startswith('mmcv.ops') and name not in TRANSLATED_OPERATORS:
            raise ConfigError(
                f'export: {name} of module {path} has no ONNX operator; train a student without it'
            )
        if name == 'RoIAlign' and module.pool_mode != 'avg':
            raise ConfigError(f"export: {path}: pool_mode must be 'avg', got {module.pool_mode!r}")
