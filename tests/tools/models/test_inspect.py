"""tools/models/inspect.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from mmengine.config import Config
from tiny_dense import single_stage
from tiny_models import CLASSES, ROI_LOSSES, cascade_rcnn, faster_rcnn, save_teacher
from tiny_training import train, training_config, write_coco
from tiny_transformers import transformer

SMALL = ('--device', 'cpu', '--size', 96, 128)
INSPECT = 'models/inspect'


@pytest.fixture
def pair(tmp_path):
    """``pair(student, teacher)`` writes both configs, with data and weights for a training run."""

    def pair(student, teacher):
        data = write_coco(tmp_path / 'data')
        for name, model in (('student', student), ('teacher', teacher)):
            cfg = training_config(model, data, tmp_path / 'unused', iters=2)
            cfg.pop('work_dir')
            cfg.dump(str(tmp_path / f'{name}.py'))
        save_teacher(tmp_path / 'teacher.pth', teacher)
        return tmp_path / 'student.py', '--teacher', tmp_path / 'teacher.py'

    return pair


@pytest.mark.parametrize(
    ('student', 'teacher', 'names'),
    [
        (faster_rcnn(), faster_rcnn(channels=24), {'cls', 'bbox', 'neck'}),
        (faster_rcnn(), cascade_rcnn(), {'cls', 'bbox', 'neck'}),
        (single_stage('GFL'), single_stage('GFL', width=64), {'cls', 'distribution', 'neck'}),
        (
            single_stage('AutoAssign'),
            single_stage('AutoAssign', width=64),
            {'cls', 'bbox', 'objectness', 'neck'},
        ),
        (single_stage('FCOS'), faster_rcnn(channels=24), {'neck'}),
        (transformer('DETR'), transformer('DETR'), {'cls', 'bbox', 'iou', 'neck', 'memory'}),
        (
            transformer('DeformableDETR'),
            transformer('DINO'),
            {'cls', 'bbox', 'iou', 'neck', 'memory'},
        ),
        (faster_rcnn(), transformer('DeformableDETR'), {'neck', 'memory'}),
    ],
    ids=[
        *('two-stage', 'of a cascade', 'GFL', 'AutoAssign', 'across families', 'DETR'),
        *('Deformable DETR of DINO', 'of a transformer'),
    ],
)
def test_suggested_losses_train_as_printed(tool, pair, capsys, tmp_path, student, teacher, names):
    assert tool(INSPECT, *pair(student, teacher), *SMALL, '--suggest') == 0
    printed: dict = {}
    exec(capsys.readouterr().out, printed)
    losses = printed['losses']
    assert set(losses) == {f'loss_kd_{name}' for name in names}
    cfg = Config.fromfile(str(tmp_path / 'student.py'))
    given = dict(config=str(tmp_path / 'teacher.py'), checkpoint=str(tmp_path / 'teacher.pth'))
    cfg.model = dict(type='Distiller', student=cfg.pop('model'), teacher=given, losses=losses)
    cfg.work_dir = str(tmp_path / 'work')
    assert train(cfg).iter == 2


def test_it_lists_modules_pairs_and_declared_losses(tool, pair, capsys, tmp_path):
    student, _, teacher = pair(faster_rcnn(), faster_rcnn(channels=24))
    cfg = Config.fromfile(str(student))
    losses = dict(ROI_LOSSES, loss_kd_maps=dict(type='MSE', student='nekc', teacher='neck'))
    cfg.model = dict(
        type='Distiller',
        student=cfg.pop('model'),
        teacher=dict(config=str(teacher), checkpoint='not there.pth'),
        losses=losses,
    )
    cfg.dump(str(tmp_path / 'distil.py'))
    assert tool(INSPECT, tmp_path / 'distil.py', *SMALL, '--json', 'found.json') == 0
    printed = capsys.readouterr().out
    assert 'student: FasterRCNN, images of 96 x 128 px' in printed
    assert 'neck: 5 levels of the same size; connector=dict(type=' in printed
    assert 'loss_kd_cls: KLDivergence of student roi_head.bbox_head.fc_cls' in printed
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['teacher']['detector'] == 'FasterRCNN'
    modules = {each['path']: each for each in found['student']['modules']}
    assert modules['neck']['shapes'][0] == [1, 16, 24, 32] and modules['neck']['strides'][0] == 4
    listed = {line.split()[0] for line in printed.splitlines() if line and line[0].isalpha()}
    assert 'neck' in listed and 'neck.lateral_convs.0.conv' not in listed  # deeper than --depth


def test_what_does_not_exist_in_a_model_is_told_of_its_loss(tool, pair, capsys, tmp_path):
    student, _, teacher = pair(faster_rcnn(), single_stage('FCOS'))
    cfg = Config.fromfile(str(student))
    cfg.model = dict(
        type='Distiller',
        student=cfg.pop('model'),
        teacher=dict(config=str(teacher), checkpoint='not there.pth'),
        losses=ROI_LOSSES,
    )
    cfg.dump(str(tmp_path / 'distil.py'))
    assert tool(INSPECT, tmp_path / 'distil.py', *SMALL) == 0
    assert 'losses.loss_kd_cls.align: RoIClassAlignment needs RoI heads' in capsys.readouterr().out


def test_a_config_alone_is_listed(tool, pair, capsys):
    student, *_ = pair(faster_rcnn(), faster_rcnn())
    assert tool(INSPECT, student, *SMALL, '--depth', 1) == 0
    printed = capsys.readouterr().out
    assert 'student: FasterRCNN' in printed and 'teacher' not in printed
    assert 'backbone.layer1' not in printed


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (('--suggest',), '--suggest: needs a teacher; name its config with --teacher'),
        (('--depth', 0), '--depth: must be at least 1, got 0'),
        (('--size', 8, 8), '--size: must be at least 32 px each'),
        (('--teacher', 'none.py'), "teacher.config: 'none.py' does not exist"),
        (('--teacher', 'mmdet::x/none.py'), "teacher.config: 'mmdet::x/none.py' does not exist"),
        (('--json', 'nowhere/found.json'), '--json: no such folder: nowhere'),
    ],
)
def test_wrong_options_are_one_line(tool, pair, capsys, arguments, says):
    student, *_ = pair(faster_rcnn(), faster_rcnn())
    assert tool(INSPECT, student, '--device', 'cpu', *arguments) == 2
    (line,) = [it for it in capsys.readouterr().err.splitlines() if it.startswith('mmkd: error')]
    assert says in line


def test_it_does_not_stand_in_the_way_of_pythons_module_of_its_name():
    code = 'import inspect; print(inspect.__file__)'
    for folder in ('tools', '.'):
        command = [sys.executable, '-c', f'import sys; sys.path[0] = {folder!r}; {code}']
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        assert 'tools' not in run.stdout


def test_a_config_of_mmdet_is_found_by_its_name(tool, capsys):
    config = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    assert tool(INSPECT, config, *SMALL, '--depth', 1) == 0
    assert 'student: RetinaNet' in capsys.readouterr().out
    assert tool(INSPECT, 'mmdet::retinanet/none.py', *SMALL) == 2
    assert 'mmdet has no such config' in capsys.readouterr().err


def test_classes_without_a_counterpart_leave_the_features(tool, pair, capsys, tmp_path):
    pair(faster_rcnn(), faster_rcnn(2))
    other = Config.fromfile(str(tmp_path / 'teacher.py'))
    for mode in ('train', 'val', 'test'):
        other[f'{mode}_dataloader'].dataset.metainfo = dict(classes=('zebra', 'horse'))
    other.dump(str(tmp_path / 'teacher.py'))
    given = (tmp_path / 'student.py', '--teacher', tmp_path / 'teacher.py')
    assert tool(INSPECT, *given, *SMALL, '--suggest') == 0
    printed = capsys.readouterr().out
    assert '# No loss on class scores: ' in printed and CLASSES[0] in printed
    assert 'loss_kd_neck=' in printed and 'loss_kd_cls=' not in printed


def test_the_class_map_of_the_config_counts(tool, pair, capsys, tmp_path):
    student, _, teacher = pair(faster_rcnn(), faster_rcnn(2))
    other = Config.fromfile(str(teacher))
    other.test_dataloader.dataset.metainfo = dict(classes=('zebra', CLASSES[1]))
    other.dump(str(teacher))
    cfg = Config.fromfile(str(student))
    given = dict(config=str(teacher), checkpoint='teacher.pth')
    class_map = dict(synonyms={CLASSES[0]: 'zebra'}, exclude=[CLASSES[2]])
    cfg.model = dict(type='Distiller', student=cfg.pop('model'), teacher=given, class_map=class_map)
    cfg.dump(str(tmp_path / 'distil.py'))
    assert tool(INSPECT, tmp_path / 'distil.py', *SMALL, '--suggest') == 0
    printed = capsys.readouterr().out
    assert 'loss_kd_cls=' in printed and 'loss_kd_bbox=' in printed and '# No loss' not in printed
