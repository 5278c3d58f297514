"""One instance's method is another function for a while, and its own again after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmkd.method_override import MethodOverride


def doubled(module):
    inner = module.forward
    return lambda x: 2 * inner(x)


def test_overrides_nest_and_restore_what_stood_there():
    module, other = nn.Identity(), nn.Identity()
    one = torch.ones(1)
    with MethodOverride(module, 'forward', doubled(module)) as outer:
        with MethodOverride(module, 'forward', doubled(module)):
            assert module(one) == 4 and other(one) == 1
        assert module(one) == 2 and module.__dict__['forward'] is outer.function
    assert module(one) == 1 and 'forward' not in module.__dict__


def test_the_method_is_restored_after_an_error():
    module = nn.Identity()
    with (
        pytest.raises(TypeError),
        MethodOverride(module, 'forward', lambda: None),
    ):
        module(torch.ones(1))
    assert 'forward' not in module.__dict__


def test_a_module_in_place_of_a_method_is_not_registered():
    module = nn.Identity()
    with MethodOverride(module, 'forward', nn.Linear(1, 1)):
        assert not list(module.parameters())


def test_removing_out_of_order_is_an_error():
    module = nn.Identity()
    first = MethodOverride(module, 'forward', doubled(module))
    second = MethodOverride(module, 'forward', doubled(module))
    with pytest.raises(RuntimeError, match=r'Identity\.forward: .* reverse order'):
        first.remove()
    second.remove()
    first.remove()
    assert 'forward' not in module.__dict__
