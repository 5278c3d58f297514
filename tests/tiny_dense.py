"""Configs of every kind of single-stage detector, small enough for a test."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from tiny_models import merge
from torch import nn

NAMES = {
    'RetinaNet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'FCOS': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'PAA': 'mmdet::paa/paa_r50_fpn_1x_coco.py',
    'TOOD': 'mmdet::tood/tood_r50_fpn_1x_coco.py',
    'VFNet': 'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py',
    'DDOD': 'mmdet::ddod/ddod_r50_fpn_1x_coco.py',
    'AutoAssign': 'mmdet::autoassign/autoassign_r50-caffe_fpn_1x_coco.py',
    'SSD': 'mmdet::ssd/ssd300_coco.py',
    'GFL': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'RTMDet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'YOLOX': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
}
KINDS = tuple(NAMES)
# A layer in each tower that an activation follows, of the kinds whose towers can be crossed.
LAYERS = {
    'RetinaNet': '{}_convs.0.conv',
    'FCOS': '{}_convs.0.gn',
    'ATSS': '{}_convs.0.gn',
    'PAA': '{}_convs.0.gn',
    'DDOD': '{}_convs.0.gn',
    'AutoAssign': '{}_convs.0.gn',
    'GFL': '{}_convs.0.gn',
    'RTMDet': '{}_convs.*.0.bn',
    'YOLOX': 'multi_level_{}_convs.*.0.bn',
}


def single_stage(
    kind: str = 'RetinaNet', classes: int = 3, width: int = 32, **changes
) -> ConfigDict:
    """mmdet's own config of a kind, made narrow; ``changes`` are merged into it.

    Args:
        kind: One of :data:`KINDS`.
        classes: Foreground classes.
        width: Channels of neck and head (not of RTMDet's and YOLOX's).
        changes: Nested dicts to merge.
    """
    model = get_config(NAMES[kind]).model
    model.data_preprocessor.pop('batch_augments', None)
    model.bbox_head.num_classes = classes
    if kind in ('RTMDet', 'YOLOX'):
        model.backbone.init_cfg = None
    elif kind == 'SSD':
        channels = (16, 32, 32, 16, 16, 16)
        narrow = dict(type='ResNet', depth=18, stem_channels=8, base_channels=8, out_indices=(1, 2))
        model.backbone = narrow
        model.neck.update(in_channels=channels[:2], out_channels=channels)
        model.neck.update(level_strides=(2,) * 4, level_paddings=(1,) * 4)  # for small images
        model.neck.l2_norm_scale = None  # whose weights are not set before init_weights
        model.bbox_head.in_channels = channels
        model.bbox_head.anchor_generator.strides = [8, 16, 32, 64, 128, 256]
    else:
        model.backbone = dict(type='ResNet', depth=18, stem_channels=8, base_channels=8)
        model.neck.update(in_channels=[8, 16, 32, 64], out_channels=width)
        model.bbox_head.update(in_channels=width, feat_channels=width, stacked_convs=1)
        if kind == 'DDOD':
            model.bbox_head.use_dcn = False  # mmcv's operator does not take maps of one position
    merge(model, changes)
    return model


def head_and_features(kind: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A head in evaluation mode with random weights, and the features of two random images."""
    model = MODELS.build(single_stage(kind))
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    model.eval().requires_grad_(False)
    with torch.no_grad():
        return model.bbox_head, model.extract_feat(torch.randn(2, 3, 128, 160))
