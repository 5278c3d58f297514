"""What modules compute, and which maps can be compared."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from tiny_dense import single_stage
from tiny_models import faster_rcnn, mask_rcnn
from tiny_transformers import transformer

from mmkd.analysis.inspection import (
    DEFAULT_SIZE,
    image_size,
    inspect_detector,
    match,
    matches,
    random_batch,
)

SIZE = (96, 128)


@pytest.fixture
def look():
    return lambda config: inspect_detector(MODELS.build(config), SIZE)


def test_shapes_strides_and_parameters_are_those_of_the_modules(look):
    model = MODELS.build(faster_rcnn())
    training, state = model.training, {k: v.clone() for k, v in model.state_dict().items()}
    found = inspect_detector(model, SIZE)
    neck = found['neck']
    assert neck.shapes[:2] == ((1, 16, 24, 32), (1, 16, 12, 16)) and neck.strides[:2] == (4, 8)
    assert neck.parameters == sum(each.numel() for each in model.neck.parameters())
    assert found['backbone'].share + found['neck'].share < 1
    assert found['rpn_head.rpn_cls'].calls == len(neck.shapes)
    scores = found['roi_head.bbox_head.fc_cls']
    assert scores.shapes[0][1] == 4 and not scores.maps  # rows of proposals
    assert found['nowhere'] is None
    order = [each.path for each in found.modules]
    assert order.index('neck') < order.index('neck.lateral_convs.0')
    assert model.training is training and not any(it._forward_hooks for it in model.modules())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    'config',
    [mask_rcnn(), single_stage('YOLOX'), single_stage('RTMDet'), transformer('DINO')],
    ids=['Mask R-CNN', 'YOLOX', 'RTMDet', 'DINO'],
)
def test_every_family_is_looked_at(look, config):
    found = look(config)
    assert found['backbone'].maps
    assert max(each.path.count('.') for each in found.modules) > 2


def test_what_is_never_called_is_named(look):
    model = MODELS.build(faster_rcnn())
    model.spare = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert inspect_detector(model, SIZE).idle == ['spare', 'spare.0']
    # The projection inside of torch's attention is not called, but used.
    assert not look(transformer('DETR')).idle


def test_maps_of_one_size_need_a_connector_where_channels_differ(look):
    narrow, wide = look(faster_rcnn()), look(faster_rcnn(channels=24))
    (found,) = [each for each in matches(narrow, wide) if each.student == 'neck']
    assert found.connector == dict(type='ConvConnector', in_channels=16, out_channels=24)
    assert found.levels == len(narrow['neck'].maps) and found.problem is None
    (same,) = [each for each in matches(narrow, narrow) if each.student == 'neck']
    assert same.connector is None


def test_a_connector_has_a_width_for_each_of_the_students_maps(look):
    """Also for those that the teacher has no counterpart of."""
    channels = (32, 64, 32, 16, 16, 16)
    wide = single_stage(
        'SSD',
        backbone=dict(base_channels=16),
        neck=dict(in_channels=channels[:2], out_channels=channels),
        bbox_head=dict(in_channels=channels),
    )
    student, teacher = look(faster_rcnn()), look(wide)
    assert len(teacher['backbone'].maps) < len(student['backbone'].maps)
    found = match(student['backbone'], teacher['backbone'])
    connector = MODELS.build(found.connector)
    maps = [torch.zeros(shape) for shape in student['backbone'].maps]
    outputs = connector(maps)
    assert len(outputs) == len(maps)
    theirs = {shape[2:]: shape[1] for shape in teacher['backbone'].maps}
    assert all(it.shape[1] == theirs[it.shape[2:]] for it in outputs if it.shape[2:] in theirs)


def test_maps_without_a_common_size_are_said_to_have_none(look):
    detr, found = look(transformer('DETR')), look(faster_rcnn())
    problem = match(found['backbone.layer1'], detr['backbone']).problem
    assert 'no common level: the student has maps of 24x32' in problem
    # A transformer without such a neck is compared across.
    assert ('neck', 'neck') in [(it.student, it.teacher) for it in matches(found, detr)]


def test_the_size_is_that_of_the_test_pipeline():
    resize = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    dataset = dict(type='X', dataset=dict(pipeline=[dict(type='LoadImageFromFile'), resize]))
    assert image_size(Config(dict(test_dataloader=dict(dataset=dataset)))) == (800, 1333)
    assert image_size(Config(dict(model={}))) == DEFAULT_SIZE


def test_labels_of_random_images_are_classes_of_the_detector():
    model = MODELS.build(faster_rcnn(1))
    data = random_batch(model, SIZE, images=2, classes=1)
    assert all(not sample.gt_instances.labels.any() for sample in data['data_samples'])
    assert all(
        torch.isfinite(it).all()
        for it in model(**data, mode='loss').values()
        if not isinstance(it, list)
    )
