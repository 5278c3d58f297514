from __future__ import annotations

import copy
import weakref

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from tiny_dense import single_stage
from tiny_models import CLASSES, batch, save_teacher
from torch import nn

from mmkd.distillers.early_backward import backpropagate_early, can_backpropagate_early


def test_gradients_and_value_are_those_of_the_plain_loss():
    torch.manual_seed(0)
    source = torch.randn(3, 4, requires_grad=True)
    layer = nn.Linear(4, 2)

    def loss(recorded):
        return layer(recorded[0].relu()).square().sum() + recorded[1].sum()

    def recorded():
        return [source * 2, torch.ones(1)]

    plain = loss(recorded()) * 3
    wanted = torch.autograd.grad(plain, [source, *layer.parameters()])
    early = backpropagate_early(loss, recorded(), layer.parameters()) * 3
    found = torch.autograd.grad(early, [source, *layer.parameters()])
    assert torch.equal(early, plain)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b)


def test_what_lies_between_is_let_go():
    held = []

    def loss(recorded):
        between = recorded.exp()  # its result is kept for the way back
        held.append(weakref.ref(between))
        return between.sum()

    value = backpropagate_early(loss, torch.ones(3, requires_grad=True) * 1)
    assert held[0]() is None
    assert value.requires_grad


def test_a_loss_that_nothing_learns_from_is_passed_on():
    value = backpropagate_early(lambda recorded: recorded.sum(), torch.ones(3))
    assert not value.requires_grad and value == 3


def test_unused_maps_have_no_gradient():
    one, two = (torch.ones(2, requires_grad=True) for _ in range(2))
    value = backpropagate_early(lambda recorded: recorded[0].sum(), [one * 1, two * 1])
    value.backward()
    assert torch.equal(one.grad, torch.ones(2)) and two.grad is None


def test_not_without_gradients_and_not_in_float16():
    assert can_backpropagate_early()
    with torch.no_grad():
        assert not can_backpropagate_early()
    with torch.autocast('cpu', torch.float16):
        assert not can_backpropagate_early()
    with torch.autocast('cpu', torch.bfloat16):
        assert can_backpropagate_early()


def crossed(part: str, tower: str, kind: str, **more) -> dict:
    layer = f'bbox_head.{tower}_convs.0.gn'
    return dict(
        type=kind,
        student=dict(module=layer, copy=True),
        teacher='bbox_head',
        align=dict(type=part, crossed=layer, confidence=False),
        **more,
    )


@pytest.mark.parametrize('shared', [False, True], ids=['each its own maps', 'two on the same maps'])
def test_a_crossed_head_teaches_the_same_either_way(tmp_path, shared, monkeypatch):
    """With a connector, whose weights must learn too."""
    init_default_scope('mmdet')
    checkpoint = save_teacher(tmp_path / 'teacher.pth', single_stage('GFL'))
    connector = dict(type='ConvConnector', in_channels=[32] * 5, out_channels=32)
    losses = dict(
        loss_kd_cls=crossed(
            'DenseClassAlignment', 'cls', 'SoftLabelBCE', beta=1.0, connector=connector
        ),
        loss_kd_edges=crossed('DenseDistributionAlignment', 'reg', 'KLDivergence', tau=1.0),
    )
    if shared:
        losses['loss_kd_box'] = crossed('DenseBoxAlignment', 'reg', 'GIoU')
    model = MODELS.build(
        dict(
            type='Distiller',
            student=single_stage('GFL'),
            teacher=dict(config=dict(model=single_stage('GFL')), checkpoint=str(checkpoint)),
            losses=losses,
            classes=CLASSES,
        )
    )
    model.prepare()
    early = {name: entry.backpropagates_early for name, entry in model.entries.items()}
    assert early['loss_kd_cls'] and early['loss_kd_edges'] != shared
    data = model.data_preprocessor(batch((128, 160)), True)
    found = []
    for way in early, dict.fromkeys(early, False):
        for name, entry in model.entries.items():
            entry.backpropagates_early = way[name]
        model.zero_grad()
        copied = copy.deepcopy(data)
        losses = model(**copied, mode='loss')
        sum(losses[name] for name in early).mul(2).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append(({name: losses[name].detach() for name in early}, gradients))
    (values, gradients), (others, wanted) = found
    assert values == others
    assert gradients.keys() == wanted.keys()
    assert any('connectors' in name for name in wanted)
    for name, gradient in wanted.items():
        assert torch.allclose(gradients[name], gradient, atol=1e-6, rtol=1e-4), name
