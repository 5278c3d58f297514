"""Whole trainings: what is written, what is resumed, what mmengine's other hooks see."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from tiny_models import CLASSES, ROI_LOSSES, RPN_LOSSES, faster_rcnn, feature_loss, save_teacher
from tiny_training import train, training_config, write_coco

from mmkd.errors import ConfigError
from mmkd.hooks import add_distillation_hook

EARLIER = Path(__file__).parents[1] / 'data/distilled_2026-11-23.ckpt'
LOSSES = dict(**ROI_LOSSES, **RPN_LOSSES, loss_kd_neck=feature_loss())


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp('data') / 'coco')


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    model = faster_rcnn(channels=24)
    path = save_teacher(tmp_path_factory.mktemp('teacher') / 'teacher.pth', model)
    return dict(config=dict(model=model), checkpoint=str(path))


def distiller(teacher, losses=LOSSES, **schedule):
    losses = copy.deepcopy(losses)
    for entry in losses.values():
        # Gentle, since the teacher is random: ten steps must not diverge.
        entry.update(schedule=dict(schedule), loss_weight=1e-3)
    return dict(type='Distiller', student=faster_rcnn(), teacher=teacher, losses=losses)


def weights(runner):
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def test_off_is_plain_mmdet_bit_for_bit(data, teacher, tmp_path):
    """Ten steps without any loss, with losses that have not begun, and with an EMA beside them."""
    results = []
    for index, model in enumerate(
        (
            faster_rcnn(),
            dict(type='Distiller', student=faster_rcnn()),
            distiller(teacher, begin=10, unit='iter'),
        )
    ):
        results.append(
            weights(train(training_config(model, data, tmp_path / str(index), iters=10)))
        )
    plain = results[0]
    untrained = MODELS.build(faster_rcnn()).state_dict()
    assert any(not torch.equal(plain[name], untrained[name]) for name in plain)
    for other in results[1:]:
        assert list(other) == list(plain)
        for name in plain:
            assert torch.equal(plain[name], other[name]), name


def test_what_is_written_is_a_plain_student_with_connectors_beside(data, teacher, tmp_path):
    runner = train(training_config(distiller(teacher), data, tmp_path))
    checkpoint = torch.load(tmp_path / 'iter_4.pth', weights_only=False)
    MODELS.build(faster_rcnn()).load_state_dict(checkpoint['state_dict'], strict=True)
    saved = checkpoint['distillation']['connectors']
    assert list(saved) == ['loss_kd_neck.convs.0.weight', 'loss_kd_neck.convs.0.bias']
    for name, value in runner.model.connectors.state_dict().items():
        assert torch.equal(saved[name], value)
    size = sum(value.numel() for value in checkpoint['state_dict'].values())
    assert size == sum(value.numel() for value in MODELS.build(faster_rcnn()).state_dict().values())
    optimized = {
        id(p) for group in runner.optim_wrapper.optimizer.param_groups for p in group['params']
    }
    assert optimized == {id(p) for p in runner.model.parameters()}
    assert {id(p) for p in runner.model.connectors.parameters()} <= optimized


def test_a_resume_restores_connectors_and_their_optimizer_state(data, teacher, tmp_path):
    first = train(training_config(distiller(teacher), data, tmp_path))
    trained = first.model.connectors.state_dict()
    config = training_config(distiller(teacher), data, tmp_path, iters=5)
    config.resume = True
    config.optim_wrapper.optimizer.lr = 0.0  # so that what it starts from can be read at the end
    config.optim_wrapper.optimizer.weight_decay = 0.0
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.iter == 5
    momentum = [
        runner.optim_wrapper.optimizer.state[p]['momentum_buffer']
        for p in runner.model.connectors.parameters()
    ]
    assert all(buffer.any() for buffer in momentum)
    checkpoint = torch.load(tmp_path / 'iter_4.pth', weights_only=False)
    for name, value in checkpoint['distillation']['connectors'].items():
        assert torch.equal(value, trained[name])
    # The optimizer's learning rate comes back with it, so one step has moved them a little, no more.
    for name, value in runner.model.connectors.state_dict().items():
        assert torch.allclose(value, trained[name], atol=0.05) and not torch.equal(
            value, MODELS.build(feature_loss()['connector']).state_dict()[name.split('.', 1)[1]]
        )


def test_measured_weights_are_logged_saved_and_resumed(data, teacher, tmp_path):
    def config(**changes):
        model = distiller(teacher, dict(loss_kd_cls=LOSSES['loss_kd_cls']))
        model['losses']['loss_kd_cls']['loss_weight'] = dict(ratio=0.1, steps=3)
        return training_config(model, data, tmp_path, **changes)

    train(config())
    saved = torch.load(tmp_path / 'iter_4.pth', weights_only=False)['distillation']['loss_weights']
    assert saved['loss_kd_cls']['measured'] == 3 and saved['loss_kd_cls']['seen'] == 4
    resumed = config(iters=5)
    resumed.resume = True
    runner = Runner.from_cfg(resumed)
    runner.train()
    after = runner.model.weight_state()['loss_kd_cls']
    assert after == dict(saved['loss_kd_cls'], seen=5)
    (log,) = max(tmp_path.glob('*/vis_data')).glob('scalars.json')
    lines = map(json.loads, log.read_text().splitlines())
    last = [line for line in lines if 'loss' in line][-1]
    weight = runner.model.entries['loss_kd_cls'].loss_weight
    assert last['weight_kd_cls'] == pytest.approx(weight) and weight != 1.0
    assert last['loss'] == pytest.approx(
        sum(value for name, value in last.items() if name.startswith('loss_')), rel=1e-4
    )


def test_a_checkpoint_of_an_earlier_release_is_resumed(data, tmp_path):
    """Written on 2026-11-23 after two iterations, with a connector and an average of the student."""
    narrow = dict(
        backbone=dict(stem_channels=2, base_channels=2), neck=dict(in_channels=[2, 4, 8, 16])
    )
    model = faster_rcnn(channels=16, **narrow)
    path = save_teacher(tmp_path / 'teacher.pth', model)
    neck = dict(student='neck', teacher='neck', type='MSE', loss_weight=1e-3)
    connector = dict(type='ConvConnector', in_channels=8, out_channels=16)
    model = dict(
        type='Distiller',
        student=faster_rcnn(channels=8, **narrow),
        # These options of then are gone.
        teacher=dict(config=dict(model=model), checkpoint=str(path), channels_last=True),
        teachers=dict(average=dict(ema=dict(momentum=0.1))),
        losses=dict(
            loss_kd=dict(neck, connector=connector),
            loss_average=dict(neck, teacher_name='average'),
        ),
    )
    config = training_config(model, data, tmp_path / 'work', iters=3)
    config.load_from, config.resume = str(EARLIER), True
    runner, stored = Runner.from_cfg(config), torch.load(EARLIER, weights_only=False)
    runner.load_or_resume = watched = Watched(runner, stored)
    runner.train()
    assert watched.seen and runner.iter == 3
    steps = stored['distillation']['averages']['average']['steps']
    assert runner.model.teachers['average'].average.steps == steps + 1


class Watched:
    """Resumes a run and compares the weights it then has with the checkpoint."""

    def __init__(self, runner, stored):
        self.runner, self.stored, self.inner = runner, stored, runner.load_or_resume
        self.seen = False

    def __call__(self):
        self.inner()
        model = self.runner.model
        for name, value in model.state_dict().items():
            assert torch.equal(value, self.stored['state_dict'][name]), name
        held = self.stored['distillation']
        for name, value in model.connector_state().items():
            assert torch.equal(value, held['connectors'][name]), name
        self.seen = True


def test_a_resume_with_other_losses_says_what_differs(data, teacher, tmp_path):
    train(training_config(distiller(teacher), data, tmp_path))
    config = training_config(distiller(teacher, ROI_LOSSES), data, tmp_path, iters=5)
    config.resume = True
    with pytest.raises(ConfigError, match=r'loss_kd_neck.convs.0.weight differ.*load_from'):
        train(config)


def test_the_plain_student_and_the_distiller_start_from_each_others_checkpoints(
    data, teacher, tmp_path
):
    train(training_config(distiller(teacher), data, tmp_path / 'kd'))
    config = training_config(faster_rcnn(), data, tmp_path / 'plain')
    config.load_from = str(tmp_path / 'kd' / 'iter_4.pth')
    train(config)
    config = training_config(distiller(teacher), data, tmp_path / 'again')
    config.load_from = str(tmp_path / 'plain' / 'iter_4.pth')
    train(config)


def test_testing_needs_no_teacher_and_agrees_with_the_plain_student(data, teacher, tmp_path):
    train(training_config(distiller(teacher), data, tmp_path / 'kd'))
    missing = dict(config='no/such/config.py', checkpoint='no/such/file.pth')
    metrics = []
    for index, model in enumerate((distiller(missing), faster_rcnn())):
        model = copy.deepcopy(model)
        config = training_config(model, data, tmp_path / f'test{index}')
        config.load_from = str(tmp_path / 'kd' / 'iter_4.pth')
        metrics.append(Runner.from_cfg(config).test())
    assert metrics[0] == metrics[1]


def test_an_ema_copies_and_saves_the_student_alone(data, teacher, tmp_path):
    config = training_config(
        distiller(teacher), data, tmp_path, custom_hooks=[dict(type='EMAHook', momentum=0.5)]
    )
    runner = train(config)
    (ema,) = (hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
    averaged = ema.ema_model.module
    student = sum(p.numel() for p in runner.model.parameters())
    assert sum(p.numel() for p in averaged.parameters()) == student
    assert averaged.teacher is None or averaged.teacher is runner.model.teacher
    checkpoint = torch.load(tmp_path / 'iter_4.pth', weights_only=False)
    plain = MODELS.build(faster_rcnn())
    plain.load_state_dict(checkpoint['state_dict'], strict=True)
    assert not any('connectors' in key for key in checkpoint['ema_state_dict'])
    # mmengine saves the averaged weights as the model's, and the trained ones as the EMA's.
    name = 'roi_head.bbox_head.fc_cls.weight'
    assert torch.equal(checkpoint['state_dict'][name], averaged.state_dict()[name])
    assert not torch.equal(checkpoint['state_dict'][name], runner.model.state_dict()[name])
    config = copy.deepcopy(config)
    config.update(resume=True)
    config.train_cfg.max_iters = 5
    assert train(config).iter == 5


def test_wrong_classes_stop_before_the_first_iteration(data, teacher, tmp_path):
    config = training_config(distiller(teacher), data, tmp_path)
    for loader in ('train_dataloader', 'val_dataloader'):
        config[loader].dataset.metainfo = dict(classes=('cat', 'dog'))
    with pytest.raises(ConfigError, match='num_classes: must be 2, .* got 3; set it to 2'):
        train(config)
    assert not list(tmp_path.glob('*.pth'))


def test_connectors_that_nothing_saves_stop_the_training(data, teacher, tmp_path):
    config = training_config(distiller(teacher), data, tmp_path, iters=1)
    del config.default_hooks.distillation
    with pytest.raises(ConfigError, match="would lose the connectors.*type='DistillationHook'"):
        train(config)
    config = training_config(distiller(teacher, ROI_LOSSES), data, tmp_path, iters=1)
    del config.default_hooks.distillation
    assert train(config).iter == 1  # nothing to lose


def test_without_the_hook_one_line_says_what_is_missing(data, teacher, tmp_path, monkeypatch):
    config = training_config(distiller(teacher, ROI_LOSSES), data, tmp_path, iters=2)
    del config.default_hooks.distillation
    said = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *_: said.append(str(text)))
    train(config)
    (line,) = [each for each in said if 'DistillationHook' in each]
    assert (
        line.startswith('default_hooks: without DistillationHook the data is not checked')
        and '\n' not in line
    )


@pytest.mark.parametrize(
    ('config', 'added'),
    [
        (dict(model=dict(type='Distiller')), True),
        (dict(model=dict(type='mmdet.Distiller'), default_hooks=dict(logger=dict(type='X'))), True),
        (dict(model=dict(type='FasterRCNN')), False),
        (dict(model=dict(type='Distiller'), default_hooks=dict(distillation=None)), False),
        (dict(model=dict(type='Distiller'), custom_hooks=[dict(type='DistillationHook')]), False),
    ],
)
def test_tools_add_the_hook_where_it_is_missing(config, added):
    config = Config(config)
    add_distillation_hook(config)
    hook = (config.get('default_hooks') or {}).get('distillation')
    assert hook == (dict(type='DistillationHook') if added else None)
    if 'logger' in (config.get('default_hooks') or {}):
        assert config.default_hooks.logger == dict(type='X')


def test_classes_of_another_order_are_found_in_the_training_data(data, teacher, tmp_path):
    config = training_config(distiller(teacher), data, tmp_path, iters=1)
    path = data / 'annotations.json'
    content = json.loads(path.read_text())
    content['categories'].reverse()
    reordered = data / 'reordered.json'
    reordered.write_text(json.dumps(content))
    for loader in ('train_dataloader', 'val_dataloader'):
        config[loader].dataset.update(ann_file=reordered.name)
        config[loader].dataset.metainfo = dict(classes=CLASSES[::-1])
    config.val_evaluator.ann_file = str(reordered)
    assert train(config).model.class_maps['teacher'].teacher_index == [2, 1, 0]
