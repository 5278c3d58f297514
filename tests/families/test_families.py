"""How kinds of detectors run as teacher, and across kinds."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hub import get_config
from tiny_models import RPN_LOSSES, batch, faster_rcnn, save_teacher

from mmkd.errors import ConfigError
from mmkd.families import SingleStage, TwoStage, family_of
from mmkd.recorder import Source


@pytest.fixture(scope='module')
def retinanet():
    model = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
    model.backbone.init_cfg = None
    return model


@pytest.fixture(scope='module')
def cascade():
    model = get_config('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py').model
    model.backbone = dict(type='ResNet', depth=18)
    model.neck.in_channels = [64, 128, 256, 512]
    return model


def test_each_detector_runs_as_far_as_its_kind_is_known(retinanet, cascade):
    two_stage = family_of(MODELS.build(faster_rcnn()))
    assert type(two_stage) is TwoStage and two_stage.num_classes() == 3
    assert two_stage.part_of(Source('roi_head.bbox_head.fc_cls')) == 'roi'
    single_stage = family_of(MODELS.build(retinanet))
    assert type(single_stage) is SingleStage and single_stage.num_classes() == 80
    assert single_stage.part_of(Source('neck.fpn_convs.0')) == 'features'
    assert single_stage.part_of(Source('bbox_head.retina_cls')) == 'head'
    cascade = family_of(MODELS.build(cascade))
    assert cascade.part_of(Source('rpn_head.rpn_cls')) == 'rpn' and cascade.num_classes() == 80
    assert cascade.part_of(Source('roi_head.bbox_head.2.fc_cls')) == 'roi.2'


def distil(student, teacher, losses, tmp_path):
    checkpoint = save_teacher(tmp_path / 'teacher.pth', teacher, None)
    distiller = MODELS.build(
        dict(
            type='Distiller',
            student=student,
            teacher=dict(config=dict(model=teacher), checkpoint=str(checkpoint)),
            losses=losses,
        )
    )
    distiller.train().init_weights()
    losses = distiller(**distiller.data_preprocessor(batch(size=(128, 160)), True), mode='loss')
    return {name: value for name, value in losses.items() if 'kd' in name}


def neck(in_channels, out_channels):
    connector = dict(type='ConvConnector', in_channels=in_channels, out_channels=out_channels)
    return dict(loss_kd_neck=dict(type='MSE', student='neck', teacher='neck', connector=connector))


def test_features_pass_between_detectors_of_different_kinds(retinanet, tmp_path):
    """P2 to P6 of the one and P3 to P7 of the other have four levels in common."""
    for student, teacher, channels in (
        (faster_rcnn(), retinanet, (16, 256)),
        (retinanet, faster_rcnn(), (256, 16)),
    ):
        losses = distil(student, teacher, neck(*channels), tmp_path)
        assert losses.keys() == {'loss_kd_neck'} and torch.isfinite(losses['loss_kd_neck'])


def test_roi_losses_between_different_kinds_say_what_is_missing(retinanet, tmp_path):
    roi = dict(
        type='KLDivergence',
        student='roi_head.bbox_head.fc_cls',
        teacher='bbox_head.retina_cls',
        align=dict(type='RoIClassAlignment'),
    )
    with pytest.raises(
        ConfigError, match='losses.loss_kd: RoIClassAlignment .* teacher, a RetinaNet'
    ):
        distil(faster_rcnn(), retinanet, dict(loss_kd=roi), tmp_path)
    rpn = dict(RPN_LOSSES['loss_kd_rpn_cls'], teacher='neck')
    with pytest.raises(
        ConfigError, match='losses.loss_kd: RPNClassAlignment .* teacher, a RetinaNet'
    ):
        distil(faster_rcnn(), retinanet, dict(loss_kd=rpn), tmp_path)


def test_a_cascade_teaches_its_rpn(cascade, tmp_path):
    student = faster_rcnn(rpn_head=dict(anchor_generator=dict(scales=[8])))
    losses = distil(student, cascade, dict(RPN_LOSSES), tmp_path)
    assert losses.keys() == set(RPN_LOSSES)


def test_what_is_no_detector_is_refused_by_name():
    with pytest.raises(ConfigError, match='must have a method extract_feat, but a Linear has none'):
        family_of(torch.nn.Linear(1, 1))
