"""Reading, checking and running a teacher."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope, Registry
from tiny_dense import single_stage
from tiny_models import CLASSES, batch, faster_rcnn, save_teacher

from mmkd.errors import CheckpointError, ConfigError, MissingFileError
from mmkd.families.two_stage import ROIS
from mmkd.recorder import Recorder, Source
from mmkd.teachers import LiveTeacher, normalization


def teacher(tmp_path, model=None, checkpoint_model=None, classes=CLASSES, **options):
    model = model or faster_rcnn()
    path = save_teacher(tmp_path / 'teacher.pth', checkpoint_model or model, classes)
    return LiveTeacher(config=dict(model=model), checkpoint=str(path), **options)


def test_is_frozen_and_in_evaluation_mode(tmp_path):
    detector = teacher(tmp_path).detector
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    assert not any(module.training for module in detector.modules())


def test_a_checkpoint_of_another_architecture_is_refused_by_its_keys(tmp_path):
    with pytest.raises(
        CheckpointError, match=r'96 unexpected: backbone\.layer1\.2\.conv1\.weight, .*90 more'
    ) as raised:
        teacher(tmp_path, faster_rcnn(), faster_rcnn(depth=34))
    assert 'missing' not in str(raised.value)
    with pytest.raises(CheckpointError, match=r'missing: backbone\.layer1\.2\.conv1') as raised:
        teacher(tmp_path, faster_rcnn(depth=34), faster_rcnn())
    assert "teacher.checkpoint='" in str(raised.value) and '\n' not in str(raised.value)


def test_a_checkpoint_of_other_classes_is_refused_by_its_shapes(tmp_path):
    expected = r'4 with another shape: roi_head.bbox_head.fc_cls.weight is \(6, 32\).*\(4, 32\)'
    with pytest.raises(CheckpointError, match=expected):
        teacher(tmp_path, faster_rcnn(classes=3), faster_rcnn(classes=5))


def test_missing_files_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Config(dict(model=faster_rcnn())).dump(tmp_path / 'teacher.py')
    with pytest.raises(
        MissingFileError, match=r"'none.pth' does not exist; .*mim train mmkd teacher.py"
    ):
        LiveTeacher(config=str(tmp_path / 'teacher.py'), checkpoint='none.pth')
    with pytest.raises(MissingFileError, match="teacher.config: 'none.py' does not exist"):
        LiveTeacher(config='none.py', checkpoint='none.pth')
    with pytest.raises(MissingFileError, match="teacher.config: 'mmdet::none.py' does not exist"):
        LiveTeacher(config='mmdet::none.py', checkpoint='none.pth')
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    with pytest.raises(CheckpointError, match="teacher.checkpoint='text.pth'"):
        LiveTeacher(config=dict(model=faster_rcnn()), checkpoint='text.pth')


def test_the_config_must_hold_a_plain_detector(tmp_path):
    with pytest.raises(ConfigError, match='has no `model`'):
        LiveTeacher(config=dict(backbone={}), checkpoint='x')
    with pytest.raises(ConfigError, match='plain config of its student'):
        LiveTeacher(config=dict(model=dict(type='Distiller')), checkpoint='x')
    with pytest.raises(ConfigError, match='a FasterRCNN has no option proposal; remove it$'):
        teacher(tmp_path, proposal='student')


def test_class_names_come_from_config_key_checkpoint_or_data(tmp_path):
    assert teacher(tmp_path).classes == CLASSES
    assert teacher(tmp_path, classes=None).classes is None
    path = str(tmp_path / 'teacher.pth')
    named = LiveTeacher(config=dict(model=faster_rcnn()), checkpoint=path, classes=['a', 'b', 'c'])
    assert named.classes == ('a', 'b', 'c')
    data = dict(dataset=dict(type='RepeatDataset', dataset=dict(type='VOCDataset')))
    voc = faster_rcnn(classes=20)
    save_teacher(tmp_path / 'teacher.pth', voc, None)
    assert LiveTeacher(dict(model=voc, train_dataloader=data), path).classes[0] == 'aeroplane'
    with pytest.raises(ConfigError, match='teacher.classes: must be 20 names, .*, got 2 '):
        LiveTeacher(dict(model=voc), path, classes=['a', 'b'])


def test_a_copy_of_the_owner_shares_it(tmp_path):
    held = teacher(tmp_path)
    assert copy.deepcopy(dict(a=held))['a'] is held


def test_building_one_leaves_the_random_numbers_alone(tmp_path):
    save_teacher(tmp_path / 'teacher.pth', faster_rcnn())
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    LiveTeacher(config=dict(model=faster_rcnn()), checkpoint=str(tmp_path / 'teacher.pth'))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]


def test_only_the_parts_that_are_read_run_without_assignment_or_suppression(tmp_path, monkeypatch):
    held = teacher(tmp_path)
    student = MODELS.build(faster_rcnn())
    feed = Recorder(student, [ROIS])
    feed._calls = {ROIS: [[torch.tensor([[0.0, 4, 6, 40, 50]])]]}
    data = student.data_preprocessor(batch(), True)
    for head in (held.detector.rpn_head, held.detector.roi_head):
        for name in ('loss', 'loss_and_predict', 'predict', 'loss_by_feat', 'predict_by_feat'):
            if hasattr(head, name):
                monkeypatch.setattr(head, name, None)  # calling it would fail
    watched = [Source('neck'), Source('rpn_head'), Source('roi_head.bbox_head')]
    for parts in ({'features'}, {'features', 'rpn'}, {'roi'}, {'rpn', 'roi'}):
        with held.recorder(watched) as seen:
            held.run(data['inputs'], data['data_samples'], student.data_preprocessor, parts, feed)
        ran = {source.module for source in watched if source in seen}
        assert ran == {'neck'} | {
            {'rpn': 'rpn_head', 'roi': 'roi_head.bbox_head'}[p] for p in parts - {'features'}
        }


def test_what_to_do_with_the_normalisation_is_decided_once(tmp_path, monkeypatch):
    """A comparison per step would make the host wait for the device."""
    held, compared = teacher(tmp_path), []
    inner = normalization._statistics
    monkeypatch.setattr(normalization, '_statistics', lambda it: compared.append(it) or inner(it))
    student = MODELS.build(faster_rcnn())
    data = student.data_preprocessor(batch(), True)
    for _ in range(3):
        held.run(
            data['inputs'],
            data['data_samples'],
            student.data_preprocessor,
            {'features'},
            Recorder(student, []),
        )
    assert len(compared) == 2


def test_names_that_do_not_fit_matter_only_to_losses_on_classes(tmp_path):
    path = save_teacher(tmp_path / 'teacher.pth', faster_rcnn(), tuple(map(str, range(80))))
    found = LiveTeacher(dict(model=faster_rcnn()), path)
    assert found.classes is None
    assert (
        'teacher.classes: must be 3 names, the number of classes of the teacher, got 80 '
        in found.classes_error
    )


OWN_MODELS = Registry('model', parent=ROOT_MODELS, scope='own_scope')


@OWN_MODELS.register_module()
class OwnFPN(FPN):
    """A neck that only this scope has."""


def prefixed(config):
    """A model config with the scope of every type, as configs of other libraries have it."""
    if isinstance(config, list):
        return [prefixed(each) for each in config]
    if not isinstance(config, dict):
        return config
    own = {key: prefixed(value) for key, value in config.items()}
    if 'type' in own and own['type'] not in ('nms', 'RoIAlign'):
        own['type'] = f'mmdet.{own["type"]}'
    return own


def test_a_teacher_of_another_library_is_built_in_its_scope(tmp_path):
    plain = single_stage()
    model = prefixed(plain)
    model['neck']['type'] = 'OwnFPN'
    path = save_teacher(tmp_path / 'teacher.pth', plain, CLASSES)
    found = LiveTeacher(dict(model=model, default_scope='own_scope'), path)
    assert type(found.detector.neck) is OwnFPN
    assert DefaultScope.get_current_instance().scope_name == 'mmdet'
