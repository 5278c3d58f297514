"""tools/gradients.py."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from tiny_models import CLASSES, ROI_LOSSES, faster_rcnn, feature_loss, save_teacher
from tiny_training import train, training_config, write_coco

QUICK = ('--device', 'cpu', '--batches', 1, '--json', 'found.json')
TASK = 'task losses'


@pytest.fixture
def config(tmp_path):
    data = write_coco(tmp_path / 'data')
    losses = copy.deepcopy(ROI_LOSSES)
    losses['loss_kd_bbox']['schedule'] = dict(begin=3)
    teacher = faster_rcnn(channels=24)
    path = save_teacher(tmp_path / 'teacher.pth', teacher)
    teacher = dict(config=dict(model=teacher), checkpoint=str(path), classes=CLASSES)
    model = dict(type='Distiller', student=faster_rcnn(), teacher=teacher, losses=losses)
    cfg = training_config(model, data, tmp_path / 'unused')
    cfg.pop('work_dir')
    path = tmp_path / 'distil.py'
    cfg.dump(str(path))
    return path


def found(tmp_path):
    return json.loads((tmp_path / 'found.json').read_text())


def test_shows_each_loss_whatever_its_schedule(tool, config, tmp_path, capsys):
    assert tool('gradients', config, *QUICK) == 0
    output = capsys.readouterr().out.splitlines()
    table = {line[: line.index('  ')]: line.split() for line in output[-3:]}
    numbers = found(tmp_path)
    assert list(table) == list(numbers) and list(table)[0] == TASK
    assert set(table) == {TASK, *ROI_LOSSES}
    assert output[-4].split() == [
        *('value', 'backbone', 'neck', 'rpn_head', 'roi_head', 'ratio', 'cosine')
    ]
    for name, row in table.items():
        assert float(row[-2]) == pytest.approx(numbers[name]['ratio'], abs=1e-3)
    assert not (tmp_path / 'work_dirs').exists()


def test_the_same_seed_gives_the_same_numbers(tool, config, tmp_path):
    results = []
    for seed in (0, 0, 1):
        assert tool('gradients', config, *QUICK, '--seed', seed) == 0
        results.append(found(tmp_path))
    assert results[0] == results[1] != results[2]


def test_a_checkpoint_takes_the_place_of_the_first_weights(tool, config, tmp_path):
    student = MODELS.build(faster_rcnn())
    torch.manual_seed(0)
    student.init_weights()
    for name, value in student.named_parameters():
        if 'rpn_cls.bias' in name:
            torch.nn.init.constant_(value, 9.0)  # all is an object
    torch.save(student.state_dict(), tmp_path / 'student.pth')
    assert tool('gradients', config, *QUICK) == 0
    before = found(tmp_path)[TASK]['value']
    assert tool('gradients', config, *QUICK, '--checkpoint', 'student.pth') == 0
    value = found(tmp_path)[TASK]['value']
    assert value > before + 3
    option = f'load_from={tmp_path / "student.pth"}'
    assert tool('gradients', config, *QUICK, '--cfg-options', option) == 0
    assert found(tmp_path)[TASK]['value'] == value


def test_connectors_come_from_a_checkpoint_of_the_same_losses(tool, config, tmp_path, capsys):
    cfg = Config.fromfile(config)
    cfg.model.losses = dict(loss_kd_neck=feature_loss())
    cfg.dump(str(tmp_path / 'maps.py'))
    cfg.work_dir = str(tmp_path / 'work')
    train(cfg)
    file = 'work/iter_4.pth'
    saved = torch.load(file, weights_only=False)
    connectors = saved['distillation']['connectors']
    values = []
    for factor in (1.0, 0.0):
        for name, value in connectors.items():
            connectors[name] = factor * value
        torch.save(saved, file)
        assert tool('gradients', 'maps.py', *QUICK, '--checkpoint', file) == 0
        values.append(found(tmp_path)['loss_kd_neck'])
    # Maps of zeros send nothing back.
    assert values[0]['norms']['neck'] > 0 == values[1]['norms']['neck']
    assert 'other losses' not in capsys.readouterr().out
    assert tool('gradients', config, *QUICK, '--checkpoint', file) == 0
    assert 'was trained with other losses' in capsys.readouterr().out


def test_without_task_losses_there_is_no_ratio(tool, config, tmp_path):
    options = ('model.task_losses=False', 'model.teacher.proposals=teacher')
    assert tool('gradients', config, *QUICK, '--cfg-options', *options) == 0
    assert set(found(tmp_path)) == set(ROI_LOSSES)
    assert all(it['ratio'] is None is it['cosine'] for it in found(tmp_path).values())


def test_a_cache_need_not_be_written(tool, config, tmp_path):
    options = ('model.teacher.proposals=teacher', 'model.teacher.num_proposals=8')
    options += ('model.teacher.cache=nowhere', 'model.teacher.min_visible=0.5')
    assert tool('gradients', config, *QUICK, '--cfg-options', *options) == 0
    assert found(tmp_path)['loss_kd_cls']['ratio'] > 0


REFUSED = {
    'batches': (('--batches', 0), '--batches: must be at least 1, got 0'),
    'batch size': (('--batch-size', 0), '--batch-size: must be at least 1, got 0'),
    'launcher': (('--launcher', 'pytorch'), 'remove --launcher'),
    'json': (('--json', 'no/where.json'), 'no such folder'),
    'checkpoint': (('--checkpoint', 'nowhere.pth'), '--checkpoint nowhere.pth does not exist'),
    'another model': (('--checkpoint', 'teacher.pth'), 'does not belong to this FasterRCNN'),
    'data': (('--cfg-options', 'train_dataloader.dataset.data_root=no'), 'no'),
    'teacher': (('--cfg-options', 'model.teacher.checkpoint=no.pth'), 'no such file: no.pth'),
    'no losses': (
        ('--cfg-options', 'model.losses.loss_kd_cls=None', 'model.losses.loss_kd_bbox=None'),
        'losses: none is active',
    ),
}


@pytest.mark.parametrize(('options', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(tool, config, capsys, options, message):
    assert tool('gradients', config, '--device', 'cpu', *options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0], lines


def test_a_plain_config_is_refused(tool, tmp_path, capsys):
    data = write_coco(tmp_path / 'data')
    training_config(faster_rcnn(), data, tmp_path).dump(str(tmp_path / 'plain.py'))
    assert tool('gradients', 'plain.py', '--device', 'cpu') == 2
    assert 'plain.py: model.type must be Distiller' in capsys.readouterr().err
