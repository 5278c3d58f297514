"""The gradient of each loss by itself, against backward."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from mmdet.registry import MODELS
from tiny_dense import single_stage
from tiny_models import CLASSES, ROI_LOSSES, batch, faster_rcnn, feature_loss, save_teacher
from tiny_transformers import transformer

from mmkd.analysis.gradients import TASK, measure_gradients
from mmkd.errors import ConfigError

LOSSES = dict(**ROI_LOSSES, loss_kd_neck=feature_loss())


@pytest.fixture
def make(tmp_path):
    """Builds distillers of the same random student and a teacher with wider FPN."""
    model = faster_rcnn(channels=24)
    path = save_teacher(tmp_path / 'teacher.pth', model)

    def make(losses=LOSSES, **options):
        torch.manual_seed(0)
        return MODELS.build(
            dict(
                type='Distiller',
                student=faster_rcnn(backbone=dict(frozen_stages=1)),
                teacher=dict(config=dict(model=copy.deepcopy(model)), checkpoint=str(path)),
                losses=copy.deepcopy(losses),
                classes=CLASSES,
                **options,
            )
        )

    return make


def by_backward(distiller, chosen):
    """Gradients of the chosen losses' sum by the weights' names, as a training step has them."""
    distiller.train()
    torch.manual_seed(7)
    data = distiller.data_preprocessor(batch(), True)
    losses = {name: value for name, value in distiller.loss(**data).items() if chosen(name)}
    total, _ = distiller.parse_losses(losses)
    distiller.zero_grad()
    total.backward()
    return {
        name: weight.grad
        for name, weight in distiller.student.named_parameters()
        if weight.grad is not None and weight.requires_grad
    }


def measured(distiller, batches=None):
    torch.manual_seed(7)  # of the proposals that are drawn
    return measure_gradients(distiller, batches or [batch()])


def gradient_norm(gradients):
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))


@pytest.mark.parametrize('name', [TASK, *LOSSES])
def test_norms_are_those_of_backward(make, name):
    found = measured(make())
    assert list(found) == [TASK, *LOSSES]
    chosen = by_backward(make(), lambda it: (it not in LOSSES) if name == TASK else it == name)
    assert set(found[name].norms) == {'backbone', 'neck', 'rpn_head', 'roi_head'}
    for module, norm in found[name].norms.items():
        expected = gradient_norm(it for key, it in chosen.items() if key.split('.')[0] == module)
        assert norm == pytest.approx(expected, rel=1e-4), module
    assert found[TASK].norms['rpn_head'] > 0
    assert found['loss_kd_neck'].norms['roi_head'] == found['loss_kd_cls'].norms['rpn_head'] == 0


HEADS = {
    'DETR': (
        transformer,
        dict(
            loss_kd_cls=dict(
                type='KLDivergence',
                student='bbox_head.fc_cls',
                teacher='bbox_head.fc_cls',
                align=dict(type='HungarianQueryAlignment'),
            )
        ),
        {'backbone', 'neck', 'encoder', 'decoder', 'bbox_head', 'query_embedding'},
    ),
    'GFL': (
        single_stage,
        dict(
            loss_kd_cls=dict(
                type='SoftLabelBCE',
                student='bbox_head.gfl_cls',
                teacher='bbox_head.gfl_cls',
                align=dict(type='DenseClassAlignment'),
            )
        ),
        {'backbone', 'neck', 'bbox_head'},
    ),
}


@pytest.mark.parametrize(('make_model', 'losses', 'modules'), HEADS.values(), ids=HEADS)
def test_other_detectors(tmp_path, make_model, losses, modules, request):
    model = make_model(request.node.callspec.id)
    path = save_teacher(tmp_path / 'teacher.pth', model)

    def make():
        torch.manual_seed(0)
        teacher = dict(config=dict(model=copy.deepcopy(model)), checkpoint=str(path))
        config = dict(type='Distiller', student=copy.deepcopy(model), teacher=teacher)
        return MODELS.build(dict(config, losses=copy.deepcopy(losses), classes=CLASSES))

    found = measured(make())['loss_kd_cls']
    assert set(found.norms) == modules
    expected = by_backward(make(), lambda name: name == 'loss_kd_cls')
    whole = gradient_norm(expected.values())
    assert math.hypot(*found.norms.values()) == pytest.approx(whole, rel=1e-4) and whole > 0


def test_ratio_and_cosine_are_of_the_weights_all_losses_reach(make):
    found = measured(make())
    task = by_backward(make(), lambda name: name not in LOSSES)
    neck = by_backward(make(), lambda name: name == 'loss_kd_neck')
    rest = [by_backward(make(), lambda name, one=one: name == one) for one in ROI_LOSSES]
    shared = set(task).intersection(neck, *rest)
    assert shared < set(task)
    both = [(neck[name].flatten(), task[name].flatten()) for name in task if name in shared]
    ours, theirs = (torch.cat(parts) for parts in zip(*both, strict=True))
    assert found['loss_kd_neck'].ratio == pytest.approx(
        float(ours.norm() / theirs.norm()), rel=1e-4
    )
    cosine = torch.cosine_similarity(ours, theirs, dim=0)
    assert found['loss_kd_neck'].cosine == pytest.approx(float(cosine), rel=1e-3)
    assert found[TASK].ratio == pytest.approx(1)
    assert found[TASK].cosine == pytest.approx(1, rel=1e-3)


def test_a_weight_scales_its_own_loss_alone(make):
    doubled = copy.deepcopy(LOSSES)
    doubled['loss_kd_neck']['loss_weight'] = 2.0
    once, twice = measured(make()), measured(make(doubled))
    assert twice['loss_kd_neck'].ratio == pytest.approx(2 * once['loss_kd_neck'].ratio, rel=1e-4)
    assert twice['loss_kd_neck'].value == pytest.approx(2 * once['loss_kd_neck'].value, rel=1e-4)
    assert twice['loss_kd_neck'].cosine == pytest.approx(once['loss_kd_neck'].cosine, rel=1e-3)
    assert twice['loss_kd_cls'].ratio == pytest.approx(once['loss_kd_cls'].ratio, rel=1e-4)


def test_batches_are_averaged(make):
    batches = [batch(seed=1), batch(seed=2)]
    distiller = make(dict(loss_kd_neck=feature_loss()))  # draws nothing
    single = [measured(distiller, [each])['loss_kd_neck'].value for each in batches]
    assert single[0] != single[1]
    assert measured(distiller, batches)['loss_kd_neck'].value == pytest.approx(sum(single) / 2)


def test_measuring_leaves_no_trace(make):
    distiller = make()
    distiller.eval()
    state = {name: value.clone() for name, value in distiller.state_dict().items()}
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    measure_gradients(distiller, [batch()])
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in distiller.state_dict().items())
    assert all(weight.grad is None for weight in distiller.parameters())
    assert not distiller.training


def test_without_task_losses_there_is_nothing_to_compare_with(make):
    found = measured(make(dict(loss_kd_neck=feature_loss()), task_losses=False))
    assert list(found) == ['loss_kd_neck']
    assert all(math.isnan(it.ratio) and it.norms['backbone'] > 0 for it in found.values())


def test_a_loss_that_compares_nothing_reaches_nothing(make):
    """Foreground boxes alone, and no box: the other losses are still compared."""
    nothing = batch()
    for sample in nothing['data_samples']:
        sample.gt_instances = sample.gt_instances[:0]
    losses = copy.deepcopy(LOSSES)
    losses['loss_kd_bbox']['align']['select'] = 'labels'
    found = measured(make(losses), [nothing])
    assert found['loss_kd_bbox'].value == 0
    assert sum(found['loss_kd_bbox'].norms.values()) == 0
    assert found['loss_kd_neck'].ratio > 0


def test_what_cannot_be_measured_is_refused(make):
    later = dict(loss_kd_neck=feature_loss() | dict(schedule=dict(begin=3)))
    with pytest.raises(ConfigError, match='losses: none is active'):
        measured(make(later))
    with pytest.raises(ConfigError, match='no batch'):
        measure_gradients(make(), [])
