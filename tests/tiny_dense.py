"""Configs of every kind of single-stage detector, small enough for a test."""

from __future__ import annotations

from mmengine.config import ConfigDict
from mmengine.hub import get_config
from tiny_models import merge

NAMES = {
    'RetinaNet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'FCOS': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'PAA': 'mmdet::paa/paa_r50_fpn_1x_coco.py',
    'GFL': 'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'RTMDet': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'YOLOX': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
}
KINDS = tuple(NAMES)


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
    else:
        model.backbone = dict(type='ResNet', depth=18, stem_channels=8, base_channels=8)
        model.neck.update(in_channels=[8, 16, 32, 64], out_channels=width)
        model.bbox_head.update(in_channels=width, feat_channels=width, stacked_convs=1)
    merge(model, changes)
    return model
