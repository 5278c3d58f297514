"""The VOC 2012 configs are plain MMDetection: they build, train and test without mmkd."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmdet.utils import register_all_modules
from mmengine import fileio
from mmengine.config import Config
from mmengine.runner import Runner
from real_files import real
from tiny_voc import load, shrink

ROOT = Path(__file__).parents[2]
STUDENT = ROOT / 'configs/students/faster-rcnn_mobilenetv2_fpn_10e_voc2012.py'
TEACHER = ROOT / 'configs/teachers/faster-rcnn_r50_fpn_10e_voc2012.py'


@pytest.fixture(scope='module', autouse=True)
def mmdet_registered():
    register_all_modules()


def num_parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_student_has_the_documented_parameters_and_strides():
    student = MODELS.build(Config.fromfile(STUDENT).model)
    assert num_parameters(student) == pytest.approx(19.5e6, rel=0.01)
    parts = {name: num_parameters(part) / 1e6 for name, part in student.named_children()}
    documented = {'backbone': 2.2, 'neck': 2.7, 'rpn_head': 0.6, 'roi_head': 14.0}
    assert {name: round(parts[name], 1) for name in documented} == documented

    student.eval()
    with torch.no_grad():
        features = student.backbone(torch.zeros(1, 3, 64, 64))
    assert [tuple(f.shape[1:]) for f in features] == [
        (24, 16, 16),
        (32, 8, 8),
        (96, 4, 4),
        (1280, 2, 2),
    ]
    assert student.roi_head.bbox_head.num_classes == 20


def test_teacher_has_the_documented_parameters():
    teacher = MODELS.build(Config.fromfile(TEACHER).model)
    assert num_parameters(teacher) == pytest.approx(41.4e6, rel=0.01)
    assert teacher.roi_head.bbox_head.num_classes == 20


def test_runs_without_mmkd():
    """In a process that cannot import mmkd, every part of the configs is found and built."""
    code = (
        'import sys; sys.modules["mmkd"] = None\n'
        'from mmengine.config import Config\n'
        'from mmdet.registry import METRICS, MODELS\n'
        'from mmdet.utils import register_all_modules; register_all_modules()\n'
        'for path in sys.argv[1:]:\n'
        '    cfg = Config.fromfile(path)\n'
        '    assert "custom_imports" not in cfg and "custom_hooks" not in cfg\n'
        '    MODELS.build(cfg.model); METRICS.build(cfg.val_evaluator)\n'
        '    assert METRICS.build(cfg.test_evaluator).metrics == ["bbox"]\n'
    )
    command = [sys.executable, '-W', 'ignore', '-c', code, str(STUDENT), str(TEACHER)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_difficult_objects_are_treated_as_the_config_says(drawn_voc, monkeypatch, tmp_path):
    cfg = shrink(load(STUDENT, drawn_voc, monkeypatch), tmp_path)
    train = DATASETS.build(cfg.train_dataloader.dataset)[0]['data_samples']
    classes = DATASETS.get('VOCDataset').METAINFO['classes']
    assert train.gt_instances.labels.tolist() == [classes.index('dog')]
    assert len(train.ignored_instances) == 1

    val = DATASETS.build(cfg.val_dataloader.dataset)[0]['data_samples']
    assert [i['ignore_flag'] for i in val.instances] == [0, 1]
    # In the pixels of the file, from 0, whatever the network's input was resized to.
    assert val.instances[0]['bbox'] == [20, 30, 80, 100]
    assert val.ori_shape == (120, 160) and val.img_shape == (96, 128)

    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = dict(classes=classes)
    seen = dict(img_id=val.img_id, width=160, height=120, anns=val.instances)
    ground_truth = fileio.load(metric.gt_to_coco_json([seen], str(tmp_path / 'out')))
    assert [a['iscrowd'] for a in ground_truth['annotations']] == [0, 1]


def test_student_trains_and_tests(voc, monkeypatch, tmp_path):
    assert Config.fromfile(STUDENT).train_dataloader.batch_size == 8
    cfg = shrink(load(STUDENT, voc, monkeypatch), tmp_path)
    runner = Runner.from_cfg(cfg)
    before = runner.model.roi_head.bbox_head.fc_cls.weight.clone()
    runner.train()
    assert runner.iter == 2
    assert not torch.equal(before, runner.model.roi_head.bbox_head.fc_cls.weight)
    assert (tmp_path / 'epoch_1.pth').exists()
    # The learning rate is 0.01 for the 8 images a step of the config, an eighth of it for one.
    assert runner.optim_wrapper.param_groups[0]['initial_lr'] == pytest.approx(0.01 / 8)

    metrics = runner.test()
    assert {'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75'} <= metrics.keys() or (
        metrics.keys() <= {'time', 'data_time'}  # CocoMetric's result when nothing is detected
    )


def test_backbone_weights_are_a_one_line_override(tmp_path):
    cfg = Config.fromfile(STUDENT)
    backbone = MODELS.build(cfg.model.backbone)  # not initialised: nothing is downloaded
    weights = tmp_path / 'mobilenet_v2.pth'
    torch.save(backbone.state_dict(), weights)
    cfg.merge_from_dict({'model.backbone.init_cfg.checkpoint': str(weights)})
    student = MODELS.build(cfg.model)
    student.init_weights()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, student.backbone.state_dict()[name]), name


def test_published_backbone_weights_fit():
    """The key layout of a MobileNetV2 trained on ImageNet is the backbone's, to the last key."""
    weights = real('MMKD_WEIGHTS', 'mobilenet_v2_imagenet_mmdet.pth')
    state = torch.load(weights, map_location='cpu', weights_only=True)
    backbone = MODELS.build(Config.fromfile(STUDENT).model.backbone)
    backbone.load_state_dict(state.get('state_dict', state), strict=True)
