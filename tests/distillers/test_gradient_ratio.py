"""Loss weights that are measured, against gradients taken by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from mmdet.registry import MODELS
from tiny_models import CLASSES, ROI_LOSSES, batch, faster_rcnn, feature_loss, save_teacher

from mmkd.distillers.gradient_ratio import GradientRatio, gradient_ratio, measure_weights
from mmkd.errors import ConfigError, PathError, UserError

LOSSES = dict(**ROI_LOSSES, loss_kd_neck=feature_loss())


@pytest.fixture
def make(tmp_path):
    """Builds distillers of the same random student and teacher."""
    model = faster_rcnn(channels=24)
    path = save_teacher(tmp_path / 'teacher.pth', model)

    def make(weight=None, losses=LOSSES, student=None, **options):
        losses = copy.deepcopy(losses)
        for entry in losses.values():
            entry.update({} if weight is None else dict(loss_weight=weight))
        torch.manual_seed(0)
        return MODELS.build(
            dict(
                type='Distiller',
                student=student or faster_rcnn(),
                teacher=dict(config=dict(model=copy.deepcopy(model)), checkpoint=str(path)),
                losses=losses,
                classes=CLASSES,
                **options,
            )
        )

    return make


def step(distiller, seed=0):
    torch.manual_seed(7)  # of the proposals that are drawn
    data = distiller.data_preprocessor(batch(seed=seed), True)
    return distiller.loss(**data)


def gradient(distiller, losses, chosen, module=''):
    """The gradient of the chosen losses by name of the weight, as backward leaves it."""
    distiller.zero_grad(set_to_none=True)
    total = sum(
        sum(each.mean() for each in (value if isinstance(value, list) else [value]))
        for name, value in losses.items()
        if chosen(name)
    )
    total.backward(retain_graph=True)
    return {
        name: weight.grad.clone()
        for name, weight in distiller.student.named_parameters()
        if weight.grad is not None and name.startswith(module)
    }


def norm(gradients, names):
    return math.sqrt(sum(float(gradients[name].square().sum()) for name in names))


def is_task(name):
    return 'loss' in name and name not in LOSSES


@pytest.mark.parametrize('modules', [None, ['neck'], ['backbone.layer4', 'neck']])
@pytest.mark.parametrize('name', LOSSES)
def test_gradients_have_the_ratio_that_is_asked_for(make, name, modules):
    distiller = make(dict(ratio=0.3, modules=modules))
    losses = step(distiller)
    at = tuple(modules or [''])
    own, task = (
        gradient(distiller, losses, chosen, at) for chosen in (lambda it: it == name, is_task)
    )
    common = own.keys() & task.keys()
    assert common and (
        modules is None or {it.split('.')[0] for it in common} <= {'backbone', 'neck'}
    )
    assert norm(own, common) == pytest.approx(0.3 * norm(task, common), rel=1e-3)


def test_the_weight_is_the_only_change_of_a_step(make):
    measured, given = make('auto'), make()
    found, plain = step(measured), step(given)
    for name in LOSSES:
        weight = found[name.replace('loss', 'weight')]
        assert torch.allclose(found[name], weight * plain[name], rtol=1e-5)
    names = [name.replace('loss', 'weight') for name in LOSSES]
    for name in found.keys() - {*LOSSES, *names}:
        ours, theirs = (
            it[name] if isinstance(it[name], list) else [it[name]] for it in (found, plain)
        )
        assert all(map(torch.equal, ours, theirs)), name
    total, logged = measured.parse_losses(found)
    assert set(names) <= set(logged)
    assert float(total.detach()) == pytest.approx(
        float(
            sum(
                value
                for name, value in logged.items()
                if name in LOSSES or is_task(name)
                if name != 'loss'
            )
        )
    )
    # What was measured leaves nothing behind.
    assert all(weight.grad is None for weight in measured.parameters())


def test_it_is_measured_in_the_first_steps_and_then_fixed(make):
    distiller = make(dict(steps=2))
    seen = []
    for seed in range(4):
        step(distiller, seed)
        seen.append(distiller.entries['loss_kd_neck'].loss_weight)
    assert len({*seen[:2]}) == 2 and seen[1] == seen[2] == seen[3]


def test_a_schedule_weakens_it(make):
    losses = dict(loss_kd_neck=dict(feature_loss(), schedule=dict(warmup=4, unit='iter')))
    weak, strong = make('auto', losses), make('auto', dict(loss_kd_neck=feature_loss()))
    factor = weak.entries['loss_kd_neck'].schedule()
    found, full = step(weak), step(strong)
    assert 0 < factor < 1
    assert torch.allclose(found['weight_kd_neck'], full['weight_kd_neck'], rtol=1e-3)
    assert torch.allclose(found['loss_kd_neck'], factor * full['loss_kd_neck'], rtol=1e-3)


def fed(ratio, pairs):
    for own, task in pairs:
        ratio.seen += 1
        ratio.update(own, task)
    return ratio


def test_it_is_the_geometric_mean():
    ratio = fed(GradientRatio(ratio=0.5, steps=2), [(1.0, 4.0), (4.0, 1.0)])
    assert ratio.weight == pytest.approx(0.5)
    assert not ratio.should_measure()


@pytest.mark.parametrize('nothing', [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.inf)])
def test_steps_without_a_gradient_do_not_count(nothing):
    ratio = fed(GradientRatio(ratio=0.5, steps=2), [nothing, (2.0, 1.0), nothing])
    assert ratio.weight == pytest.approx(0.25) and ratio.should_measure()


def test_it_can_follow():
    ratio = fed(GradientRatio(ratio=1.0, steps=1, every=3, momentum=0.5), [(1.0, 1.0)])
    due = []
    for _ in range(6):
        due.append(ratio.should_measure())
        if due[-1]:
            ratio.update(16.0, 1.0)
        ratio.seen += 1
    assert due == [False, False, True, False, False, True]
    assert ratio.weight == pytest.approx(1 / 16**0.75)  # half of the way, twice
    other = GradientRatio(ratio=1.0, steps=1, every=3, momentum=0.5)
    other.load_state(ratio.state())
    assert other.state() == ratio.state() and other.weight == ratio.weight


@pytest.mark.parametrize(
    ('weight', 'message'),
    [
        (
            'high',
            "loss_weight: must be a number of at least 0, 'auto' or dict(ratio=…), got 'high'",
        ),
        (True, "loss_weight: must be a number of at least 0, 'auto' or dict(ratio=…), got True"),
        (dict(ratio=0), 'loss_weight.ratio: must be above 0, got 0'),
        (dict(ratio='0.3'), "loss_weight.ratio: must be above 0, got '0.3'"),
        (dict(steps=0), 'loss_weight.steps: must be an integer above 0, got 0'),
        (dict(every=0), 'loss_weight.every: must be an integer above 0, got 0'),
        (dict(momentum=1), 'loss_weight.momentum: must be in [0, 1), got 1'),
        (dict(modules='neck'), "loss_weight.modules: must be a list of module paths, got 'neck'"),
        (dict(target=0.3), "loss_weight: got an unexpected keyword argument 'target'"),
    ],
)
def test_wrong_values(make, weight, message):
    with pytest.raises(ConfigError) as caught:
        make(weight)
    assert str(caught.value) == f'losses.loss_kd_cls.{message}'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(weight=dict(modules=['nekc'])),
            "loss_weight.modules: 'nekc' is not in the student; near: neck",
        ),
        (dict(weight=dict(modules=['backbone.maxpool'])), 'has no trained weights'),
        (dict(weight='auto', task_losses=False), 'must be a number with task_losses=False'),
        (
            dict(weight=dict(modules=['roi_head']), losses=dict(loss_kd_neck=feature_loss())),
            None,  # no gradient of the loss there, so it is never measured
        ),
        (
            dict(weight='auto', student=faster_rcnn(backbone=dict(with_cp=True))),
            "loss_weight=dict(modules=['neck'])",
        ),
    ],
    ids=['path', 'no weights', 'no task losses', 'elsewhere', 'checkpointing'],
)
def test_what_cannot_be_measured(make, changes, message):
    if message is None:
        assert make(**changes) is not None
        with pytest.raises(ConfigError, match='no weights of loss_weight.modules in common'):
            step(make(**changes))
        return
    with pytest.raises(UserError) as caught:
        step(make(**changes))
    assert str(caught.value).startswith('losses.loss_kd_') and message in str(caught.value)


def test_behind_activation_checkpointing_it_is_measured(make):
    distiller = make(dict(modules=['neck']), student=faster_rcnn(backbone=dict(with_cp=True)))
    assert step(distiller)['weight_kd_neck'] != 1


def test_numbers_are_given():
    assert gradient_ratio(None) is None and gradient_ratio(2.5) is None
    assert gradient_ratio('auto').ratio == GradientRatio().ratio


def test_small_gradients_survive_half_precision():
    weight = torch.nn.Linear(1, 1)
    given = torch.full((1, 1), 1.0)
    ratio = GradientRatio(ratio=1.0)
    with torch.autocast('cpu', torch.float16):
        value = weight(given).float().sum()
        measure_weights({'loss_kd': ratio}, {'loss_kd': value * 1e-8}, {'loss_cls': value}, weight)
    assert ratio.weight == pytest.approx(1e8, rel=0.01)


def test_paths_are_checked_before_the_first_step(make):
    with pytest.raises(PathError):
        make(dict(modules=['nekc'])).prepare()
