"""mmkd/alignments/cross_head.py: the teacher's head on other maps."""

from __future__ import annotations

import pytest
import torch
from tiny_dense import LAYERS, head_and_features
from torch import nn

from mmkd.alignments.cross_head import run_head_from
from mmkd.errors import PathError
from mmkd.recorder import Recorder, Source

KINDS = tuple(LAYERS)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('tower', ['cls', 'reg'])
def test_the_rest_of_a_head_makes_of_its_own_maps_what_the_whole_head_does(kind, tower):
    head, features = head_and_features(kind)
    layer = LAYERS[kind].format(tower)
    source = Source(layer, copy=True)
    with torch.no_grad(), Recorder(head, [source]) as seen:
        whole = head(features)
    own = [level.requires_grad_() for level in seen[source]]
    rest = run_head_from(head, layer, [level.clone() for level in own])
    part = dict(cls=0, reg=1)[tower]
    for mine, wanted in zip(rest[part], whole[part], strict=True):
        assert mine.requires_grad
        assert torch.allclose(mine, wanted, atol=1e-5)
    # Predictions that do not come from these maps have no gradient, and their shape.
    assert [level.shape for level in rest[1 - part]] == [level.shape for level in whole[1 - part]]
    assert not any(level.requires_grad for level in rest[1 - part])
    # The maps learn; the head is the one it was.
    gradients = torch.autograd.grad(sum(level.sum() for level in rest[part]), own)
    assert all(gradient.any() for gradient in gradients)
    assert all('forward' not in vars(module) for module in head.modules())
    with torch.no_grad():
        again = head(features)
    assert all(torch.equal(a, b) for a, b in zip(again[part], whole[part], strict=True))


@pytest.mark.parametrize('kind', ['GFL', 'RTMDet', 'YOLOX'])
def test_what_comes_before_the_layer_is_not_computed(kind):
    head, features = head_and_features(kind)
    layer = LAYERS[kind].format('cls')
    source, ran = Source(layer, copy=True), []
    with Recorder(head, [source]) as seen, torch.no_grad():
        head(features)
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            own = module._conv_forward
            module._conv_forward = lambda *args, own=own, name=name: ran.append(name) or own(*args)
    run_head_from(head, layer, seen[source])
    # Left are the predictions and the towers' layers after it.
    assert not [name for name in ran if '_convs' in name and name.split('.')[-2] == '0']
    assert [name for name in ran if '_convs' not in name]


def test_predictions_of_the_other_tower_are_not_computed():
    head, features = head_and_features('GFL')
    layer = LAYERS['GFL'].format('cls')
    with Recorder(head, [source := Source(layer, copy=True)]) as seen, torch.no_grad():
        head(features)
    maps = [level.clone().requires_grad_() * 1 for level in seen[source]]
    ran = []
    for name in ('gfl_cls', 'gfl_reg'):
        own = head.get_submodule(name)._conv_forward
        head.get_submodule(name)._conv_forward = lambda *args, own=own, name=name: (
            ran.append(name) or own(*args)
        )
    run_head_from(head, layer, maps)
    assert set(ran) == {'gfl_cls'}


def test_what_shadows_a_layers_forward_is_there_again():
    head, features = head_and_features('GFL')
    layer = LAYERS['GFL'].format('cls')
    module = head.get_submodule(layer)
    module.forward = shadow = torch.relu
    with Recorder(head, [source := Source(layer, copy=True)]) as seen, torch.no_grad():
        head(features)
    run_head_from(head, layer, seen[source])
    assert vars(module)['forward'] is shadow


def test_an_unknown_layer_is_near_a_known_one():
    head, features = head_and_features('GFL')
    with pytest.raises(
        PathError, match=r"GFLHead has no layer 'cls_convs.0.bn'; near: cls_convs.0"
    ):
        run_head_from(head, 'cls_convs.0.bn', list(features))
