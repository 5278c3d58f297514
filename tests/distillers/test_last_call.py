"""A teacher's pass ends after the last call that is recorded, and never before."""

from __future__ import annotations

import copy
import gc
import weakref
from contextlib import suppress

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from tiny_dense import single_stage
from tiny_models import CLASSES, batch, cascade_rcnn, faster_rcnn, save_teacher
from tiny_transformers import transformer
from torch import nn

from mmkd.distillers import last_call
from mmkd.distillers.last_call import LastCall
from mmkd.distillers.loss_entry import LossEntry
from mmkd.distillers.step import TeacherPass
from mmkd.nested import map_tensors
from mmkd.recorder import Enough, Recorder, Source
from mmkd.teachers import LiveTeacher

EAGER = dict(backend='eager')


@pytest.fixture(autouse=True)
def nothing_compiled():
    yield
    torch._dynamo.reset()


class Pair:
    """A teacher whose ``sources`` losses read, the passes of a training, and what they call."""

    def __init__(self, folder, config, *sources, **options):
        path = save_teacher(folder / 'teacher.pth', config)
        self.student = MODELS.build(copy.deepcopy(config))
        self.teacher = LiveTeacher(config=dict(model=config), checkpoint=str(path), **options)
        self.entries = [
            LossEntry(f'loss_{index}', dict(type='MSE', student=source, teacher=source))
            for index, source in enumerate(sources)
        ]
        self.sources = [entry.teacher for entry in self.entries]
        self.passes = self.new_passes()
        self.called: list[str] = []
        for name, module in self.teacher.detector.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.called.append(name))

    def new_passes(self):
        return TeacherPass('teacher', self.teacher, self.entries, self.student, None)

    def run(self, passes=None, **options):
        """What a pass recorded, by source, and the names of the modules it called."""
        data = self.student.data_preprocessor(batch(**options), True)
        passes = passes or self.passes
        self.called.clear()
        passes.run_teacher(
            **data,
            preprocessor=self.student.data_preprocessor,
            student=Recorder(self.student, []),
        )
        return [passes.recorder[source] for source in self.sources], list(self.called)


def tensors(value):
    found = []
    map_tensors(lambda each: found.append(each) or each, value)
    return found


def assert_equal(given, wanted):
    given, wanted = tensors(given), tensors(wanted)
    assert len(given) == len(wanted) > 0
    assert all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True))


# Detector, what is recorded, and modules that run whole passes alone.
CASES = {
    'stage': (faster_rcnn, ['backbone.layer2'], ['backbone.layer3', 'neck']),
    'backbone': (faster_rcnn, ['backbone', 'backbone.layer1'], ['neck']),
    'level': (faster_rcnn, ['neck.fpn_convs.0'], ['neck.fpn_convs.1']),
    'star': (cascade_rcnn, ['neck.lateral_convs.*'], ['neck.fpn_convs.0']),
    'method': (faster_rcnn, [dict(module='backbone', method='forward', index=1)], ['neck']),
    'input': (faster_rcnn, [dict(module='backbone.layer3', capture='input', index=0)], ['neck']),
    'copy': (faster_rcnn, [dict(module='backbone.layer1.0.bn1', copy=True)], ['backbone.layer2']),
    'encoder': (
        lambda: transformer('DINO', layers=(2, 2)),
        ['encoder.layers.0', 'neck'],
        ['encoder.layers.1'],
    ),
    'decoder': (
        lambda: transformer('DETR', layers=(1, 3)),
        ['decoder.layers.1'],
        ['decoder.layers.2'],
    ),
}


@pytest.mark.parametrize('options', [{}, dict(compile=EAGER), dict(scale=2.0)], ids=str)
@pytest.mark.parametrize('case', CASES)
def test_what_follows_the_last_recorded_call_does_not_run(tmp_path, case, options):
    make, sources, spared = CASES[case]
    pair = Pair(tmp_path, make(), *sources, **options)
    whole, called = pair.run()
    assert set(spared) <= set(called)
    for _ in range(2):
        early, fewer = pair.run()
        assert_equal(early, whole)
        assert not set(spared) & set(fewer)
        # In the same order: a hook of the module that ends the pass is the last thing that runs.
        assert fewer == called[: len(fewer)]


@pytest.mark.parametrize(
    ('make', 'source', 'other'),
    [
        (lambda: single_stage('RetinaNet'), 'bbox_head.cls_convs.0', 'bbox_head.retina_reg'),
        (faster_rcnn, 'rpn_head.rpn_cls', 'rpn_head.rpn_reg'),
    ],
)
def test_a_head_that_levels_share_gives_all_of_them(tmp_path, make, source, other):
    pair = Pair(tmp_path, make(), source)
    (whole,), called = pair.run()
    (early,), fewer = pair.run()
    assert len(early) == 5 and [level.shape[2:] for level in early] != [early[0].shape[2:]] * 5
    assert_equal(early, whole)
    assert called.count(other) == 5 and fewer.count(other) == 4


def test_images_of_changing_size_and_number(tmp_path):
    pair = Pair(tmp_path, single_stage('RetinaNet'), 'bbox_head.cls_convs.0', 'backbone.layer2')
    sizes = [(96, 128), (64, 64), (64, 128), (128, 64), (128, 128), (96, 64), (128, 96)]
    early = []
    for index, size in enumerate(sizes * 2):
        options = dict(size=size, images=1 + index % len(sizes) % 2, seed=index)
        given, called = pair.run(**options)
        wanted, all_called = pair.run(pair.new_passes(), **options)
        assert_equal(given, wanted)
        early.append(called != all_called)
    # New extremes run whole, what lies between them does not.
    assert not any(early[:2]) and all(early[len(sizes) :])


def test_a_pass_whose_result_is_needed_runs_whole(tmp_path):
    rois = 'roi_head.bbox_head.fc_cls'
    config = faster_rcnn()
    pair = Pair(tmp_path, config, 'backbone.layer2', rois, proposals='teacher')
    data = pair.student.data_preprocessor(batch(), True)
    for _ in range(3):
        pair.passes.run_teacher(
            **data,
            preprocessor=pair.student.data_preprocessor,
            student=Recorder(pair.student, []),
        )
        assert len(pair.passes.joint[1][Source(rois)]) == len(
            pair.passes.shared['rois']['roi_head.bbox_head']
        )


def test_nothing_outlives_a_pass_that_ended(tmp_path):
    pair = Pair(tmp_path, faster_rcnn(), dict(module='neck', method='forward', index=0))
    pair.run()
    held = []
    backbone = pair.teacher.detector.backbone
    handle = backbone.layer4.register_forward_hook(
        lambda *given: held.append(weakref.ref(given[2]))
    )
    hooks = sum(len(module._forward_hooks) for module in pair.teacher.detector.modules())
    gc.disable()  # no cycle of an error and its frames may keep activations
    try:
        with torch.autocast('cpu', dtype=torch.bfloat16):
            pair.run()
            assert torch.is_autocast_enabled('cpu')
            assert torch.get_autocast_dtype('cpu') == torch.bfloat16
        assert [each() for each in held] == [None]
    finally:
        gc.enable()
    handle.remove()
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled('cpu')
    modules = pair.teacher.detector.modules()
    assert sum(len(module._forward_hooks) for module in modules) == hooks - 1
    assert 'forward' not in vars(pair.teacher.detector.neck)
    assert not Recorder._open


@pytest.mark.parametrize('amp', [False, 'bfloat16'])
def test_a_teachers_own_precision_ends_with_its_pass(tmp_path, amp):
    pair = Pair(tmp_path, faster_rcnn(), 'backbone.layer2', amp=amp)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=amp is False):
        whole, _ = pair.run()
        early, called = pair.run()
        assert 'neck' not in called
        assert torch.is_autocast_enabled('cpu') == (amp is False)
    assert_equal(early, whole)


def test_a_training_step_gives_the_same_losses(tmp_path):
    config = faster_rcnn()
    path = save_teacher(tmp_path / 'teacher.pth', config)
    losses = dict(loss_kd=dict(type='MSE', student='backbone', teacher='backbone'))
    teacher = dict(config=dict(model=config), checkpoint=str(path))
    distiller = MODELS.build(
        dict(type='Distiller', student=config, teacher=teacher, losses=losses, classes=CLASSES)
    )
    distiller.train().init_weights()
    calls = []
    distiller.prepare()
    distiller.teacher.detector.neck.register_forward_pre_hook(lambda *_: calls.append(1))
    data = distiller.data_preprocessor(batch(), True)
    found = []
    for _ in range(3):
        torch.manual_seed(0)
        found.append(distiller(**data, mode='loss')['loss_kd'].item())
    assert len(calls) == 1 and len(set(found)) == 1


# ------------------------------------------------------------------------------ how it is learnt


class Tiles(nn.Module):
    """A layer that is called for each tile of an image, and as often again as it is told."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.spare = nn.Identity()
        self.after = nn.Identity()

    def forward(self, x, again=0):
        parts = [self.layer(tile) for tile in x.split(8, 3)]
        parts += [self.layer(x) for _ in range(again)]
        return self.after(parts[-1])


class Passes:
    """Passes of a small model that end as those of a teacher do."""

    def __init__(self, model, *sources):
        self.model = model
        self.recorder = Recorder(model, sources, owner='teacher')
        self.last_call = LastCall(self.recorder)
        self.afters = 0
        model.after.register_forward_hook(self.count)

    def count(self, *_):
        self.afters += 1

    def __call__(self, width=8, result_is_needed=False, **options):
        """Whether the pass ended early."""
        before, x = self.afters, torch.zeros(2, 3, 4, width)
        self.last_call.expect(x.shape)
        with self.recorder, suppress(Enough):
            self.model(x, **options)
        self.last_call.learn(x.shape, result_is_needed)
        return self.afters == before


LAYER = Source('layer')


def test_a_size_that_changes_the_calls_loses_none():
    passes = Passes(Tiles(), LAYER)
    for width in (16, 64, 32, 24, 8, 40):
        passes(width)
        assert passes.recorder.calls[LAYER] == [width // 8]
    # Sizes of equal calls are known to be equal, and so are those between.
    passes = Passes(Tiles(), LAYER)
    assert [passes(width) for width in (17, 24, 20, 17)] == [False, False, True, True]


def test_calls_that_change_without_a_reason_are_told(monkeypatch):
    passes, said = Passes(Tiles(), LAYER), []
    monkeypatch.setattr(last_call, 'RECHECK', 4)
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text: said.append(text))
    assert [passes(again=2) for _ in range(4)] == [False, True, True, True]
    assert not said and not passes(again=3)  # the fifth runs whole, and from then on each does
    assert passes.recorder.calls[LAYER] == [4]
    assert 'teacher no longer makes as many calls as before of layer' in said[0]
    assert not any(passes(again=2) for _ in range(3)) and len(said) == 1


def test_fewer_calls_than_before_are_noticed_too():
    passes = Passes(Tiles(), LAYER)
    assert [passes(again=again) for again in (1, 1, 0, 1)] == [False, True, False, False]
    assert passes.recorder.calls[LAYER] == [2]


@pytest.mark.parametrize(
    ('sources', 'options'),
    [
        ([LAYER], dict(result_is_needed=True)),
        ([LAYER, Source('spare')], {}),  # might be called in another pass
        ([], {}),
    ],
)
def test_a_pass_runs_whole_where_its_end_is_not_known(sources, options):
    passes = Passes(Tiles(), *sources)
    assert not any(passes(**options) for _ in range(3))


def test_a_list_that_later_calls_write_into_is_what_it_was_in_the_end():
    class Writer(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.after = Listed(), nn.Identity()

        def forward(self, x):
            found = self.body(x)
            found[0] = self.after(x + 1)

    class Listed(nn.Module):
        def forward(self, x):
            return [x]

    passes = Passes(Writer(), Source('body'))
    for _ in range(3):
        assert not passes()
        assert passes.recorder[Source('body')][0].sum() > 0


def test_another_recorder_of_the_same_pass_sees_all_of_it():
    passes = Passes(Tiles(), LAYER)
    passes()
    with Recorder(passes.model, [Source('after')]) as outer:
        assert not passes()
    assert Source('after') in outer
    with Recorder(Tiles(), [Source('after')]):  # of another model
        assert passes()
