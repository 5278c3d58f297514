"""Faults that are planted into a sound distillation, on real photographs where they are there."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from real_files import real
from tiny_models import CLASSES, ROI_LOSSES, batch, faster_rcnn, feature_loss, save_teacher

from mmkd.analysis.complexity import build_test_data
from mmkd.analysis.detections import Sample
from mmkd.analysis.diagnosis import Diagnosis, check_gradients, score_models
from mmkd.analysis.gradients import TASK, LossGradient, measure_gradients
from mmkd.analysis.run_start import build_distillation, with_all_active

ROOT = Path(__file__).parents[2]
IMAGES = 80
FEW = 40


@pytest.fixture(scope='module')
def on_photographs():
    """A Faster R-CNN that was trained on photographs of animals teaches one like it; validation images."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ('MMKD_VOC', 'MMKD_WEIGHTS'):
            patch.setenv(variable, f'{real(variable)}/')
        cfg = Config.fromfile(str(ROOT / 'benchmarks/configs/voc/distilled.py'))
    init_default_scope('mmdet')
    set_random_seed(0)
    distiller, _, batches = build_distillation(
        with_all_active(cfg, 'distilled.py'), batches=1, batch_size=2
    )
    sample = Sample.of(build_test_data(cfg, 'val_dataloader'), IMAGES)
    return distiller, batches, sample


@pytest.fixture
def planted(on_photographs):
    """Lets a fault be planted into the teacher, and takes it out afterwards."""
    distiller, batches, sample = on_photographs
    detector = distiller.teacher.detector
    weights = copy.deepcopy(detector.state_dict())
    swaps = detector.data_preprocessor._channel_conversion
    yield distiller, batches, sample, detector
    detector.load_state_dict(weights)
    detector.data_preprocessor._channel_conversion = swaps
    distiller.teacher._renormalization = None


def scored(distiller, sample, is_trained=False, images=FEW):
    sample = Sample(sample.batches[:images], sample.instances[:images], sample.classes)
    found = Diagnosis()
    found.preprocessing = dict.fromkeys(('student', 'teacher'), dict(channels='bgr_to_rgb=…'))
    score_models(distiller, sample, is_trained, found)
    return found


def test_a_sound_pair_has_no_finding(planted):
    distiller, batches, sample, _ = planted
    found = scored(distiller, sample)
    assert found.findings == []
    assert found.scores['teacher'].ap50 > 0.2
    assert found.classes['teacher'] == {name: name for name in sample.classes}
    assert [*check_gradients(distiller, measure_gradients(distiller, batches))] == []
    assert found.notes == [
        'student: not tested, as it has no trained weights; name some with --checkpoint'
    ]


def test_random_weights(planted):
    distiller, _, sample, detector = planted
    torch.manual_seed(0)
    for weight in detector.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    (finding,) = scored(distiller, sample).findings
    assert finding.key == 'teacher.checkpoint' and 'AP50 is only' in finding.what


def test_red_and_blue_swapped(planted):
    distiller, _, sample, detector = planted
    swaps = detector.data_preprocessor._channel_conversion
    detector.data_preprocessor._channel_conversion = not swaps
    distiller.teacher._renormalization = None
    (finding,) = scored(distiller, sample, images=IMAGES).findings
    assert finding.key == 'teacher.config' and 'red and blue swapped' in finding.what


@pytest.mark.parametrize('order', [[1, 2, 3, 4, 5, 0], [2, 1, 0, 3, 4, 5]], ids=['all', 'two'])
def test_classes_in_another_order(planted, order):
    distiller, _, sample, detector = planted
    head = detector.roi_head.bbox_head
    with torch.no_grad():
        for weight in head.fc_cls.parameters():
            weight.copy_(weight[[*order, 6]])
        for weight in head.fc_reg.parameters():
            per_class = weight.view(6, 4, *weight.shape[1:])
            weight.copy_(per_class[order].reshape(weight.shape))
    (finding,) = scored(distiller, sample).findings
    assert (
        finding.key == 'teacher.classes'
        and 'write teacher.classes in the class order' in finding.todo
    )
    for index, moved in enumerate(order):
        names = f"its '{sample.classes[index]}' detects '{sample.classes[moved]}'"
        assert (names in finding.what) == (index != moved)


def test_a_teacher_below_its_student(planted, monkeypatch):
    distiller, _, sample, detector = planted
    monkeypatch.setitem(distiller.__dict__, 'student', copy.deepcopy(detector))
    with torch.no_grad():
        detector.roi_head.bbox_head.fc_reg.weight.mul_(0.0)
    found = scored(distiller, sample, is_trained=True)
    assert found.scores['student'].map > found.scores['teacher'].map
    assert [finding.key for finding in found.findings] == ['teacher']
    assert 'is below the' in found.findings[0].what


# ---------------------------------------------------------------------- losses


def of(ratio=0.5, cosine=0.5, norm=1.0):
    return LossGradient(1.0, dict(neck=norm), ratio, cosine)


@pytest.fixture
def distiller(tmp_path):
    model = faster_rcnn(channels=24)
    path = save_teacher(tmp_path / 'teacher.pth', model)
    losses = dict(copy.deepcopy(ROI_LOSSES), loss_kd_neck=feature_loss())
    losses['loss_kd_neck']['loss_weight'] = 2.0
    return MODELS.build(
        dict(
            type='Distiller',
            student=faster_rcnn(),
            teacher=dict(config=dict(model=model), checkpoint=str(path)),
            losses=losses,
            classes=CLASSES,
        )
    )


@pytest.mark.parametrize(
    ('gradient', 'key', 'words'),
    [
        (of(), None, ''),
        (of(ratio=0.02), None, ''),
        (of(ratio=math.nan, cosine=math.nan), None, ''),
        (of(ratio=100.0), 'losses.loss_kd_neck.loss_weight', 'set it to 0.02, or'),
        (of(ratio=1e-3), 'losses.loss_kd_neck.loss_weight', 'set it to 2e+03, or'),
        (of(ratio=0.0, cosine=math.nan, norm=0.0), 'losses.loss_kd_neck', 'has no gradient'),
        (of(cosine=-0.6), 'losses.loss_kd_neck', 'opposes that of the task losses (cosine -0.60)'),
    ],
    ids=['sound', 'weak', 'no tasks', 'strong', 'too weak', 'dead', 'conflict'],
)
def test_gradients_become_words(distiller, gradient, key, words):
    gradients = {TASK: of(1.0, 1.0), **dict.fromkeys(ROI_LOSSES, of()), 'loss_kd_neck': gradient}
    found = [*check_gradients(distiller, gradients)]
    assert [finding.key for finding in found] == ([key] if key else [])
    assert all(words in str(finding) for finding in found)


def test_a_weight_that_is_a_thousand_times_too_large(distiller):
    before = measure_gradients(distiller, [batch()])
    distiller.entries['loss_kd_neck']._weight *= 1e4 / before['loss_kd_neck'].ratio
    found = [*check_gradients(distiller, measure_gradients(distiller, [batch()]))]
    assert 'losses.loss_kd_neck.loss_weight' in [finding.key for finding in found]
