"""Comparisons that are shown while a student trains."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import Image
from tiny_models import CLASSES, ROI_LOSSES, faster_rcnn
from tiny_training import train, training_config, write_coco

from mmkd.errors import ConfigError
from mmkd.hooks import ComparisonHook
from mmkd.hooks.student_config import student_config
from mmkd.teachers import LiveTeacher

predict = LiveTeacher.predict

HOOK = dict(type='ComparisonHook')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp('data') / 'coco', images=6)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """Config and checkpoint of a teacher that finds something at any score."""
    folder = tmp_path_factory.mktemp('teacher')
    model = faster_rcnn(channels=24)
    model.test_cfg.rcnn.score_thr = 0.0
    Config(dict(model=model)).dump(folder / 'teacher.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(model)
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=detector.state_dict(), meta=meta), folder / 'teacher.pth')
    return dict(config=str(folder / 'teacher.py'), checkpoint=str(folder / 'teacher.pth'))


def config(data, teacher, tmp_path, hook=HOOK, name='run', iters=4, **changes):
    """A distillation of four iterations, validated every two."""
    student = faster_rcnn()
    student['backbone'].update(norm_eval=False)
    student['test_cfg']['rcnn']['score_thr'] = 0.0
    model = dict(type='Distiller', student=student, teacher=teacher, losses=dict(ROI_LOSSES))
    cfg = training_config(model, data, tmp_path / name, iters=iters, **changes)
    cfg.train_cfg.val_interval = 2
    if hook:
        cfg.default_hooks.comparison = hook
    return cfg


def images_of(folder):
    return sorted(folder.glob('*/vis_data/vis_image/*.png'))


def test_the_same_images_are_shown_after_each_validation(data, teacher, tmp_path):
    train(config(data, teacher, tmp_path, dict(HOOK, images=2, score_thr=0.0)))
    shown = images_of(tmp_path / 'run')
    assert [path.stem.rpartition('_')[2] for path in shown] == ['2', '4'] * 2
    assert len({path.stem.rpartition('_')[0] for path in shown}) == 2
    assert all(path.name.startswith('comparison_') for path in shown)
    widths, heights = zip(*(Image.open(path).size for path in shown), strict=True)
    assert min(widths) > 2 * max(heights)  # ground truth, teacher, student
    first, second = (np.asarray(Image.open(path).convert('RGB')).astype(int) for path in shown[:2])
    # What changes is the student, on the right; the last text below has another count, or other scores.
    changed = np.flatnonzero(np.abs(first - second).max(axis=(0, 2)))
    assert changed.size and changed.min() > 2 * first.shape[1] // 3


def test_training_is_the_same_bit_by_bit(data, teacher, tmp_path):
    states = []
    for name, hook in (('off', None), ('on', HOOK)):
        runner = train(config(data, teacher, tmp_path, hook, name))
        modes = [module.training for module in runner.model.modules()]
        assert not any(each.detector.training for each in runner.model.teachers.values())
        random = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())
        weights = torch.load(tmp_path / name / 'iter_4.pth', weights_only=False)['state_dict']
        assert 'backbone.bn1.running_mean' in weights
        states.append(
            (random, modes, {key: value.numpy().tobytes() for key, value in weights.items()})
        )
    assert states[0] == states[1]
    assert not images_of(tmp_path / 'off') and images_of(tmp_path / 'on')


def test_a_teacher_runs_once_per_image_and_an_average_each_time(
    data, teacher, tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(LiveTeacher, 'predict', lambda *args: calls.append(1) or predict(*args))
    for options, times in ((teacher, 1), (dict(ema=dict(type='ExpMomentumEMA')), 2)):
        calls.clear()
        train(config(data, options, tmp_path, dict(HOOK, images=3), name=f'times{times}'))
        assert len(calls) == 3 * times


def test_images_are_named_and_shown_at_an_interval(data, teacher, tmp_path):
    hook = dict(HOOK, images=['3.png', 'images/1.png'], interval=2)
    train(config(data, teacher, tmp_path, hook, iters=6))
    names = [path.name for path in images_of(tmp_path / 'run')]
    assert names == [f'comparison_{image}_{step}.png' for image in (1, 3) for step in (2, 6)]


def test_a_plain_run_shows_the_detector(data, tmp_path):
    cfg = config(data, {}, tmp_path, dict(HOOK, images=1))
    cfg.model = cfg.model.student
    train(cfg)
    with Image.open(images_of(tmp_path / 'run')[0]) as image:
        assert image.width < 2.9 * image.height


def test_validation_alone_shows_no_teacher_and_builds_none(data, tmp_path):
    absent = dict(config='absent.py', checkpoint='absent.pth')
    runner = Runner.from_cfg(config(data, absent, tmp_path, dict(HOOK, images=1)))
    runner.val()
    assert [path.stem.rpartition('_')[2] for path in images_of(tmp_path / 'run')] == ['0']


def test_tensorboard_gets_them(data, teacher, tmp_path):
    pytest.importorskip('tensorboard', reason='tensorboard is not installed')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = config(data, teacher, tmp_path, dict(HOOK, images=2))
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    runner = train(cfg)
    runner.visualizer.close()
    (folder,) = tmp_path.glob('run/*/vis_data')
    events = EventAccumulator(str(folder), size_guidance=dict(images=0)).Reload()
    tags = events.Tags()['images']
    assert len(tags) == 2 and all(tag.startswith('comparison_') for tag in tags)
    assert all([each.step for each in events.Images(tag)] == [2, 4] for tag in tags)
    assert len(images_of(tmp_path / 'run')) == 4


def test_the_plain_students_config_has_no_such_hook(data, teacher, tmp_path):
    hooks = student_config(config(data, teacher, tmp_path)).default_hooks
    assert 'comparison' not in hooks and 'checkpoint' in hooks


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (dict(images=0), 'images must be an integer of at least 1 or a list of file names, got 0'),
        (dict(images='0.png'), "got '0.png'"),
        (dict(interval=0), 'interval must be at least 1, got 0'),
        (dict(score_thr=30), 'score_thr must be in [0, 1], got 30'),
    ],
)
def test_wrong_arguments_are_refused(arguments, says):
    with pytest.raises(
        ConfigError, match=re.escape(f'ComparisonHook: {says}' if says[0] != 'g' else says)
    ):
        ComparisonHook(**arguments)


def test_what_cannot_be_shown_is_refused_before_the_first_iteration(data, teacher, tmp_path):
    cases = {
        'ComparisonHook: images: 77.png is none of the 6 images': dict(
            hook=dict(HOOK, images=['77.png'])
        ),
        "teacher.classes: must be the teacher's class names": dict(
            teacher=nameless(teacher, tmp_path)
        ),
    }
    for number, (says, changes) in enumerate(cases.items()):
        given = dict(data=data, teacher=teacher, tmp_path=tmp_path, name=f'case{number}') | changes
        cfg = config(**given)
        # Losses on features alone do not ask for the names of classes.
        cfg.model.losses = dict(
            loss_kd=dict(
                type='MSE',
                student='neck',
                connector=dict(type='ConvConnector', in_channels=16, out_channels=24),
            )
        )
        runner = Runner.from_cfg(cfg)
        with pytest.raises(ConfigError, match=says):
            runner.train()
        assert runner.iter == 0


def nameless(teacher, tmp_path):
    state = torch.load(teacher['checkpoint'], weights_only=True)['state_dict']
    torch.save(dict(state_dict=state), tmp_path / 'nameless.pth')
    return dict(teacher, checkpoint=str(tmp_path / 'nameless.pth'))


def test_a_run_without_validation_goes_on(data, teacher, tmp_path):
    cfg = config(data, teacher, tmp_path)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    assert train(cfg).iter == 4
    assert not images_of(tmp_path / 'run')
