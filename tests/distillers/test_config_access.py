"""A distiller's config gives the keys of its student."""

from __future__ import annotations

import copy
import pickle

import pytest
from mmengine.config import Config, ConfigDict

import mmkd.distillers  # noqa: F401


@pytest.fixture
def model():
    student = dict(type='FasterRCNN', backbone=dict(type='ResNet', init_cfg=dict(type='X')))
    config = Config(dict(model=dict(type='mmkd.Distiller', student=student, losses={})))
    return config.model


def test_keys_of_the_student_are_read_and_changed(model):
    assert 'init_cfg' in model.backbone
    model.backbone.init_cfg = None
    assert model.student.backbone == dict(type='ResNet', init_cfg=None)
    assert model.type == 'mmkd.Distiller' and model.losses == {}


def test_the_config_itself_is_as_it_was(model):
    assert 'backbone' not in model and model.get('backbone') is None
    assert set(model) == {'type', 'student', 'losses'} == set(model.to_dict())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied == model and copied.backbone.type == 'ResNet'


@pytest.mark.parametrize(
    'config',
    [
        dict(type='Distiller', student=dict(type='FCOS')),
        dict(type='Distiller'),
        dict(type='FasterRCNN', student=dict(backbone={})),
        dict(student=dict(backbone={})),
    ],
)
def test_what_nobody_has_is_missing_as_before(config):
    config = ConfigDict(config)
    with pytest.raises(KeyError):
        config['backbone']
    with pytest.raises(AttributeError):
        config.backbone  # noqa: B018
