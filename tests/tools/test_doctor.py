"""tools/doctor.py."""

from __future__ import annotations

import copy
import json

import pytest
from tiny_models import CLASSES, ROI_LOSSES, faster_rcnn, save_teacher
from tiny_training import training_config, write_coco

QUICK = ('--device', 'cpu', '--batches', 1, '--images', 4)


@pytest.fixture
def config(tmp_path):
    data = write_coco(tmp_path / 'data')
    teacher = faster_rcnn(channels=24)
    path = save_teacher(tmp_path / 'teacher.pth', teacher)
    teacher = dict(config=dict(model=teacher), checkpoint=str(path), classes=CLASSES)
    losses = copy.deepcopy(ROI_LOSSES)
    losses['loss_kd_cls'].update(loss_weight=1e6, schedule=dict(begin=100))
    model = dict(type='Distiller', student=faster_rcnn(), teacher=teacher, losses=losses)
    cfg = training_config(model, data, tmp_path / 'unused')
    cfg.pop('work_dir')
    path = tmp_path / 'distil.py'
    cfg.dump(str(path))
    return path


def test_what_is_wrong_is_said_and_nothing_is_written(tool, config, tmp_path, capsys):
    before = {*tmp_path.rglob('*')}
    assert tool('doctor', config, *QUICK) == 2
    printed = capsys.readouterr().out
    head, _, faults = printed.partition('findings:\n')
    lines = [line.strip() for line in faults.splitlines()]
    assert any(line.startswith('teacher.checkpoint: ') for line in lines)
    assert any(line.startswith('losses.loss_kd_cls.loss_weight: ') for line in lines)
    assert all(';' in line for line in lines)
    assert 'On 4 validation images:' in head and 'Preprocessing:' in head
    assert 'note: student: not tested' in head and 'times a plain step' in head
    assert {*tmp_path.rglob('*')} == before


def test_numbers_as_json(tool, config, tmp_path):
    assert tool('doctor', config, *QUICK, '--json', 'found.json') == 2
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['images'] == 4 and set(found['scores']) == {'teacher'}
    assert set(found['gradients']) == {'task losses', *ROI_LOSSES}
    assert {each['key'] for each in found['findings']} >= {'losses.loss_kd_cls.loss_weight'}
    assert found['preprocessing']['student']['channels'].startswith('bgr_to_rgb=')


def test_a_student_with_weights_is_tested_too(tool, config, tmp_path):
    save_teacher(tmp_path / 'student.pth', faster_rcnn(), seed=3)
    options = ('--checkpoint', 'student.pth', '--json', 'found.json')
    assert tool('doctor', config, *QUICK, *options) == 2
    assert set(json.loads((tmp_path / 'found.json').read_text())['scores']) == {
        'teacher',
        'student',
    }


@pytest.mark.parametrize(('classes', 'tested'), [(3, True), (4, False)])
def test_load_from_may_be_of_other_classes(tool, config, tmp_path, classes, tested):
    """As a training run loads it: the classifier starts anew, and such a student is worth no test."""
    save_teacher(tmp_path / 'start.pth', faster_rcnn(classes), seed=3)
    options = ('--json', 'found.json', '--cfg-options', f'load_from={tmp_path / "start.pth"}')
    assert tool('doctor', config, *QUICK, *options) == 2
    scores = json.loads((tmp_path / 'found.json').read_text())['scores']
    assert ('student' in scores) == tested


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--images', 0), '--images: must be at least 1, got 0'),
        (('--batches', -1), '--batches: must be at least 1, got -1'),
        (('--json', 'no/such/found.json'), '--json: no such folder: no/such'),
        (('--checkpoint', 'no.pth'), '--checkpoint no.pth does not exist'),
    ],
)
def test_wrong_options(tool, config, capsys, options, message):
    assert tool('doctor', config, *QUICK, *options) == 2
    assert message in capsys.readouterr().err


def test_a_config_that_distils_nothing(tool, tmp_path, capsys):
    cfg = training_config(faster_rcnn(), write_coco(tmp_path / 'data'), tmp_path / 'unused')
    cfg.dump(str(tmp_path / 'plain.py'))
    assert tool('doctor', tmp_path / 'plain.py', *QUICK) == 2
    assert 'plain.py: model.type must be Distiller, got FasterRCNN' in capsys.readouterr().err
