"""Recorder and Source."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from mmkd.errors import ConfigError, PathError
from mmkd.nested import to_float32
from mmkd.recorder import Recorder, Source


def as_float32(source, value):
    return to_float32(value)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls = nn.Linear(4, 3)

    def forward(self, x, scale=1.0):
        return self.cls(x) * scale, self.targets(x)

    def targets(self, x):
        return dict(labels=x.argmax(-1))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 4)
        self.head = Head()
        self.spare = nn.Linear(1, 1)

    def forward(self, x):
        return self.head(self.body(x), scale=2.0)


@pytest.fixture
def model():
    return Model()


def hooks_of(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_output_input_index_keyword_and_method(model):
    whole = Source('head')
    scores = Source('head', index=0)
    fed = Source('head', capture='input', index=0)
    scale = Source('head', capture='input', index='scale')
    labels = Source('head', method='targets', index='labels')
    root = Source('', index=0)
    x = torch.randn(5, 2)
    with Recorder(model, [whole, scores, fed, scale, labels, root]) as seen:
        out, targets = model(x)
    assert seen[whole][0] is out and seen[scores] is out and seen[root] is out
    assert torch.equal(seen[fed], model.body(x))
    assert seen[scale] == 2.0
    assert seen[labels] is targets['labels']


def test_a_module_called_more_than_once_gives_a_list(model):
    source = Source('body')
    with Recorder(model, [source]) as seen:
        first, second = model.body(torch.zeros(1, 2)), model.body(torch.ones(1, 2))
    assert seen[source][0] is first and seen[source][1] is second


def test_a_second_pass_starts_empty(model):
    source = Source('body')
    recorder = Recorder(model, [source])
    for _ in range(2):
        with recorder:
            out = model.body(torch.zeros(1, 2))
    assert recorder[source] is out


@pytest.mark.parametrize('fails', [False, True])
def test_no_hook_and_no_wrapper_outlives_the_block(model, fails):
    sources = [Source('head'), Source('body'), Source('head', method='targets')]
    recorder = Recorder(model, [*sources, Source('head', method='targets', index='labels')])
    try:
        with recorder:
            assert hooks_of(model) == 2
            model(torch.zeros(1, 2))
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert sources[0] not in recorder
    assert hooks_of(model) == 0
    assert 'targets' not in vars(model.head)
    assert model.head.targets.__func__ is Head.targets


def test_a_method_replaced_on_the_instance_comes_back(model):
    own = model.head.targets = lambda x: 'own'
    with Recorder(model, [Source('head', method='targets')]) as seen:
        model(torch.zeros(1, 2))
    assert seen[Source('head', method='targets')] == 'own'
    assert vars(model.head)['targets'] is own


def test_no_activation_outlives_clear(model):
    source = Source('body')
    recorder = Recorder(model, [source])
    with recorder:
        model(torch.zeros(1, 2))
    kept = weakref.ref(recorder[source])
    recorder.clear()
    gc.collect()
    assert kept() is None


def test_wrong_module_path_names_near_ones(model):
    with pytest.raises(
        PathError, match=r"student \(Model\) has no module 'head.clss'.*near: head.cls"
    ):
        Recorder(model, [Source('head.clss')], owner='student')
    with pytest.raises(PathError, match=r"no method 'target'.*near: targets"):
        Recorder(model, [Source('head', method='target')])


def test_a_module_that_was_not_called_says_so(model):
    with Recorder(model, [Source('spare')], owner='teacher') as seen:
        model(torch.zeros(1, 2))
    with pytest.raises(
        PathError, match='teacher did not compute spare.*not called in this forward pass'
    ):
        seen[Source('spare')]


def test_an_index_that_is_not_there_says_what_is(model):
    with pytest.raises(
        PathError, match=r'head\[7\] does not exist; the output is tuple of length 2'
    ):
        with Recorder(model, [Source('head', index=7)]):
            model(torch.zeros(1, 2))
    assert hooks_of(model) == 0


def test_config_forms():
    assert Source.parse('neck') == Source('neck')
    assert Source.parse(dict(module='neck', index=1)) == Source('neck', index=1)
    with pytest.raises(ConfigError, match='is not a valid source: .*path'):
        Source.parse(dict(path='neck'))
    with pytest.raises(ConfigError, match='index: not given for the input'):
        Source('neck', capture='input')
    with pytest.raises(ConfigError, match="got 'grad'"):
        Source('neck', capture='grad')


class Levels(nn.Module):
    """Three levels in a list of blocks, the last called as often as it is told."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(1, 1, 1)) for _ in range(12))

    def forward(self, x, again=0):
        # Not in the order of the list.
        values = {index: self.blocks[index](x + index) for index in reversed(range(12))}
        for _ in range(again):
            self.blocks[3](x)
        return [values[index] for index in range(12)], dict(last=[values[11], x])


def test_a_star_stands_for_one_name_and_gives_them_in_the_models_order():
    model = Levels()
    source = Source('blocks.*.0')
    with Recorder(model, [source, Source('blocks.*')]) as record:
        values, _ = model(torch.zeros(1, 1, 2, 2))
    assert all(a is b for a, b in zip(record[source], values, strict=True))
    assert len(record[Source('blocks.*')]) == 12
    assert not any(module._forward_hooks for module in model.modules())


def test_modules_behind_a_star_are_called_once_each():
    model, source = Levels(), Source('blocks.*.0')
    with Recorder(model, [source]) as record:
        model(torch.zeros(1, 1, 2, 2), again=1)
    with pytest.raises(
        PathError, match=r'must be called once per forward pass, got .*\[1, 1, 1, 2, 1'
    ):
        record[source]


def test_a_shared_module_is_found_by_each_of_its_names():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict(dict(first=shared, second=shared))
    sources = [Source('first'), Source('second')]
    with Recorder(model, [*sources, Source('*')]) as seen:
        out = model['first'](torch.ones(1, 2))
    assert all(seen[source] is out for source in sources)
    assert [each is out for each in seen[Source('*')]] == [True]


def test_a_star_that_matches_nothing_is_an_error():
    with pytest.raises(PathError, match=r"no module 'blocks.\*.conv'"):
        Recorder(Levels(), [Source('blocks.*.conv')])
    with pytest.raises(PathError, match="module 'blocks.0' .Sequential. has no method 'predict'"):
        Recorder(Levels(), [Source('blocks.*', method='predict')])


def test_an_index_may_go_deeper():
    model = Levels()
    deep, named = Source.parse(dict(module='', index=[0, 2])), Source('', index=(1, 'last', 0))
    assert hash(deep) == hash(Source('', index=(0, 2)))
    with Recorder(model, [deep, named]) as record:
        values, _ = model(torch.zeros(1, 1, 2, 2))
    assert record[deep] is values[2] and record[named] is values[11]
    assert str(named) == '[1][last][0]'
    with Recorder(model, [Source('', index=(0, 12))]):
        with pytest.raises(
            PathError, match=r'\[0\]\[12\] does not exist; the output is list of length 12'
        ):
            model(torch.zeros(1, 1, 2, 2))


def test_what_is_changed_in_place_afterwards_is_not_passed_off_as_what_it_was():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True))
    plain, kept = Source('1'), Source('1', copy=True)
    after = Source('2')
    x = torch.randn(5, 2)
    with Recorder(model, [plain, kept, after]) as seen:
        model(x)
    assert (seen[kept] < 0).any() and torch.equal(seen[kept].relu(), seen[after])
    with pytest.raises(ConfigError, match=r"changed 1 in place.*module='1', …, copy=True"):
        seen[plain]
    (gradient,) = torch.autograd.grad(seen[kept].sum(), model[1].bias)
    assert torch.equal(gradient, torch.full((4,), 5.0))


def test_a_list_is_looked_through_for_changes(model):
    class Pair(nn.Module):
        def forward(self, x):
            return [x + 1, (x + 2, None)]

    pair, source = Pair(), Source('')
    with Recorder(pair, [source]) as seen:
        out = pair(torch.zeros(2))
    assert seen[source] is out
    out[1][0].add_(1)
    with pytest.raises(ConfigError, match='in place'):
        seen[source]
    with Recorder(pair, [Source('', copy=True)]) as seen:
        out = pair(torch.zeros(2))
    out[1][0].add_(1)
    assert torch.equal(seen[Source('', copy=True)][1][0], torch.full((2,), 2.0))


def test_half_precision_is_read_as_float32():
    class Many(nn.Module):
        def forward(self, x):
            half = x.bfloat16()
            return dict(maps=[half, half + 1], rest=(x, x.long(), 'name', None))

    many, source, kept = Many(), Source(''), Source('', copy=True)
    with Recorder(many, [source, kept], convert=as_float32) as seen:
        out = many(x := torch.full((2,), 1.5))
    assert torch.equal(seen[kept]['maps'][1], torch.full((2,), 2.5))
    assert all(level.dtype == torch.float32 for level in seen[source]['maps'])
    assert torch.equal(seen[source]['rest'][1], x.long()) and seen[source]['rest'][2:] == (
        'name',
        None,
    )
    assert seen[source]['maps'][0] is seen[source]['maps'][0]  # brought to float32 once
    assert out['maps'][0].dtype == torch.bfloat16


def test_half_precision_that_was_changed_in_place_is_not_read_either():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(inplace=True)).bfloat16()
    source = Source('0')
    with Recorder(model, [source], convert=as_float32) as seen:
        model(torch.randn(5, 2).bfloat16())
    with pytest.raises(ConfigError, match='changed 0 in place'):
        seen[source]
