"""tools/benchmark.py."""

from __future__ import annotations

import copy
import json

import pytest
from mmengine.config import Config
from tiny_models import CLASSES, ROI_LOSSES, faster_rcnn, save_teacher
from tiny_training import training_config, write_coco

QUICK = ('--device', 'cpu', '--iterations', 2, '--warmup', 0, '--json', 'cost.json')


@pytest.fixture
def config(tmp_path):
    """A distillation config whose teacher's checkpoint and pretrained weights are absent."""
    data = write_coco(tmp_path / 'data')
    losses = copy.deepcopy(ROI_LOSSES)
    losses['loss_kd_bbox']['schedule'] = dict(begin=3)
    student = faster_rcnn()
    student.backbone.init_cfg = dict(type='Pretrained', checkpoint='imagenet.pth')
    teacher = faster_rcnn(channels=24)
    teacher.backbone.init_cfg = dict(
        type='ConvertedCheckpoint', source='mae', checkpoint='imagenet.pth'
    )
    model = dict(
        type='Distiller',
        student=student,
        teacher=dict(
            config=dict(model=teacher), checkpoint=str(tmp_path / 'teacher.pth'), classes=CLASSES
        ),
        losses=losses,
    )
    cfg = training_config(model, data, tmp_path / 'unused')
    cfg.pop('work_dir')
    path = tmp_path / 'distil.py'
    cfg.dump(str(path))
    return path


def numbers(tmp_path):
    return json.loads((tmp_path / 'cost.json').read_text())


def test_measures_random_images_with_a_random_teacher(tool, config, tmp_path, capsys):
    options = ('--random-teacher', '--size', 64, 96, '--batch-size', 3, '--threads', 1)
    assert tool('benchmark', config, *QUICK, *options) == 0
    cost = numbers(tmp_path)
    times = [cost[key] for key in ('student_step_s', 'teacher_pass_s', 'kd_step_s')]
    assert cost['overhead_ratio'] == pytest.approx(times[2] / (times[0] + times[1]))
    # All losses, also the one that would begin later.
    assert set(cost['shares']) == set(cost['losses_s']) == set(ROI_LOSSES)
    assert cost['shares']['loss_kd_cls'] == pytest.approx(
        cost['losses_s']['loss_kd_cls'] / times[2]
    )
    assert list(cost['peak_memory_mb']) == ['student_step', 'teacher_pass', 'kd_step']
    assert all(len(times) == 2 for times in cost['rounds'].values())
    assert (cost['size'], cost['batch_size'], cost['threads']) == ([64, 96], 3, 1)
    output = capsys.readouterr().out
    assert '3 images of 64 x 96 on cpu' in output
    assert all(name in output for name in (*ROI_LOSSES, f'{cost["overhead_ratio"]:.3f}'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['cost.json', 'data', 'distil.py']


def test_measures_the_configs_data_with_its_teacher(tool, config, tmp_path, capsys):
    model = Config.fromfile(config).model.teacher.config.model
    save_teacher(tmp_path / 'teacher.pth', model)
    assert tool('benchmark', config, *QUICK, '--data') == 0
    cost = numbers(tmp_path)
    assert (cost['size'], cost['batch_size'], cost['arguments']['data']) == ([96, 128], 2, True)
    assert tool('benchmark', config, *QUICK, '--data', '--cfg-options', 'data_root=nowhere') == 2


REFUSED = {
    'iterations': (('--iterations', 0), '--iterations: must be at least 1, got 0'),
    'warmup': (('--warmup', -1), '--warmup: must be at least 0, got -1'),
    'batch': (('--batch-size', 0), '--batch-size: must be at least 1, got 0'),
    'threads': (('--threads', 0), '--threads: must be at least 1, got 0'),
    'sizes': (('--size', 64, 64, 3), '--size: must be one side, or height and width'),
    'small': (('--size', 8), 'at least 32 px'),
    'size of data': (('--size', 64, '--data'), "the config's pipeline sets the size"),
    'launcher': (('--launcher', 'pytorch'), 'remove --launcher'),
    'amp on cpu': (('--amp',), '--amp: needs a CUDA device'),
    'json': (('--json', 'no/where.json'), 'no such folder'),
    'no losses': (
        ('--cfg-options', 'model.losses.loss_kd_cls=None', 'model.losses.loss_kd_bbox=None'),
        'none is active',
    ),
    'teacher': ((), 'teacher.pth'),
    'no data': (('--data', '--cfg-options', 'train_dataloader.dataset.data_root=no'), 'no'),
}


@pytest.mark.parametrize(('options', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(tool, config, capsys, options, message):
    random = () if 'teacher.pth' in message else ('--random-teacher',)
    assert tool('benchmark', config, '--device', 'cpu', *random, *options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0], lines


def test_a_plain_config_is_refused(tool, tmp_path, capsys):
    cfg = training_config(faster_rcnn(), tmp_path, tmp_path)
    cfg.dump(str(tmp_path / 'plain.py'))
    assert tool('benchmark', 'plain.py', '--device', 'cpu') == 2
    assert 'plain.py: model.type must be Distiller' in capsys.readouterr().err


def test_a_student_of_masks_needs_data(tool, config, capsys):
    cfg = Config.fromfile(config)
    student = cfg.model.student
    student.type = 'MaskRCNN'
    student.roi_head.mask_roi_extractor = copy.deepcopy(student.roi_head.bbox_roi_extractor)
    student.roi_head.mask_head = dict(type='FCNMaskHead', in_channels=16, num_classes=3)
    cfg.dump(str(config))
    assert tool('benchmark', config, '--device', 'cpu', '--random-teacher') == 2
    assert 'masks' in capsys.readouterr().err
