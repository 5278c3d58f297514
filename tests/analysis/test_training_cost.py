"""What is measured of a training step, and that measuring leaves no trace. No test looks at a time."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from mmdet.registry import MODELS
from tiny_models import (
    CLASSES,
    ROI_LOSSES,
    RPN_LOSSES,
    batch,
    faster_rcnn,
    feature_loss,
    save_teacher,
)

from mmkd.analysis.training_cost import PASSES, _Passes, _peak_bytes, measure, random_batch
from mmkd.errors import ConfigError

NECK_LOSS = dict(loss_kd_neck=feature_loss())


@pytest.fixture
def make(tmp_path):
    """Builds distillers of a tiny student and a teacher with wider FPN."""
    model = faster_rcnn(channels=24)
    path = save_teacher(tmp_path / 'teacher.pth', model)

    def make(losses, **teacher):
        config = dict(config=dict(model=copy.deepcopy(model)), checkpoint=str(path))
        return MODELS.build(
            dict(
                type='Distiller',
                student=faster_rcnn(),
                teacher=config | teacher,
                losses=copy.deepcopy(losses),
                classes=CLASSES,
            )
        )

    return make


class CallCounter:
    """A meter that counts the module calls of models by their names."""

    def __init__(self, *models):
        self.models = models
        self.calls = Counter()

    def __call__(self, run):
        def count(name):
            return lambda *_: self.calls.update([name])

        with ExitStack() as stack:
            for model in self.models:
                for name, module in model.named_modules():
                    stack.callback(module.register_forward_hook(count(name)).remove)
            run()
        return 1.0


def test_numbers_agree_with_each_other(make):
    cost = measure(make(ROI_LOSSES | NECK_LOSS), [batch()], 3, warmup=1)
    assert tuple(cost.rounds) == tuple(cost.peak_memory_mb) == PASSES
    for name in PASSES:
        assert len(cost.rounds[name]) == 3
        assert sorted(cost.rounds[name])[1] == getattr(cost, f'{name}_s') > 0
    whole = cost.student_step_s + cost.teacher_pass_s
    assert cost.overhead_ratio == pytest.approx(cost.kd_step_s / whole)
    low, high = cost.overhead_quartiles
    assert 0 < low <= high
    assert list(cost.shares) == list(cost.losses_s) == [*ROI_LOSSES, *NECK_LOSS]
    for name, share in cost.shares.items():
        assert 0 < share == pytest.approx(cost.losses_s[name] / cost.kd_step_s)


HEADS = ('rpn_head.rpn_cls', 'roi_head.bbox_head.fc_cls')
# What is asked of the teacher, and how often it calls its two classifiers: on five levels, on proposals.
PARTS = {
    'neck': (NECK_LOSS, {}, (0, 0)),
    'rpn': (RPN_LOSSES, {}, (5, 0)),
    'roi': (ROI_LOSSES, {}, (0, 1)),
    'all': (ROI_LOSSES | RPN_LOSSES | NECK_LOSS, {}, (5, 1)),
    'joint': (ROI_LOSSES, dict(proposals='teacher'), (5, 1)),
}


@pytest.mark.parametrize(('losses', 'teacher', 'heads'), PARTS.values(), ids=PARTS)
def test_teacher_pass_runs_what_the_losses_read_and_nothing_of_the_student(
    make, losses, teacher, heads
):
    distiller = make(losses, **teacher).train()
    passes = _Passes(distiller, amp=False)
    data = distiller.data_preprocessor(batch(), True)
    alone, in_step = (CallCounter(distiller.teacher.detector) for _ in range(2))
    student = CallCounter(distiller.student)
    passes.teacher_pass(data, student)  # the first learns after which call the next may end
    passes.teacher_pass(data, alone)
    passes.kd_step(data, in_step)
    assert alone.calls == in_step.calls
    assert not student.calls
    assert alone.calls['backbone'] == alone.calls['neck'] == 1
    assert tuple(alone.calls[name] for name in HEADS) == heads


def test_student_step_runs_no_teacher(make):
    distiller = make(ROI_LOSSES).train()
    passes = _Passes(distiller, amp=False)
    calls = CallCounter(distiller.teacher.detector)
    passes.student_step(distiller.data_preprocessor(batch(), True), calls)
    assert not calls.calls
    assert all(it.grad is not None for it in distiller.roi_head.bbox_head.parameters())


@pytest.mark.parametrize('proposals', ['student', 'teacher'])
def test_an_entry_is_weighed_with_its_own_way_back_and_no_further(make, proposals):
    distiller = make(ROI_LOSSES | NECK_LOSS, proposals=proposals).train()
    passes = _Passes(distiller, amp=False)
    own = distiller.entries
    student = CallCounter(distiller.student)
    taken = passes.losses(distiller.data_preprocessor(batch(), True), student)
    assert taken == dict.fromkeys([*ROI_LOSSES, *NECK_LOSS], 1.0)
    assert not student.calls
    assert distiller.entries is own
    assert all(it.grad is None for it in distiller.parameters())


def test_measuring_leaves_no_trace(make):
    distiller = make(ROI_LOSSES | NECK_LOSS).eval()
    before = copy.deepcopy(distiller.state_dict())
    random_state = torch.get_rng_state()
    measure(distiller, [batch()], iterations=2, warmup=0)
    after = distiller.state_dict()
    assert any('running_mean' in name for name in after)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(it.grad is None for it in distiller.parameters())
    assert not distiller.training and not distiller.student.training
    for model in (distiller, distiller.teacher.detector):
        assert not any(module._forward_hooks for module in model.modules())
    record = distiller._recorders_of(tuple(distiller.entries))
    assert not record.student._calls
    assert not any(each.recorder._calls for each in record.passes)


def test_the_state_comes_back_when_measuring_fails(make):
    distiller = make(ROI_LOSSES).eval()
    before = copy.deepcopy(distiller.state_dict())
    with pytest.raises(KeyError):
        measure(distiller, [batch(), dict(nothing=[])])
    assert not distiller.training
    for name, value in distiller.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_losses_that_rest_are_left_out(make):
    losses = copy.deepcopy(ROI_LOSSES)
    losses['loss_kd_bbox']['schedule'] = dict(begin=3)
    cost = measure(make(losses), [batch()], iterations=1, warmup=0)
    assert list(cost.losses_s) == ['loss_kd_cls']
    losses['loss_kd_cls']['schedule'] = dict(begin=3)
    for resting in (losses, {}):
        with pytest.raises(ConfigError, match='none is active'):
            measure(make(resting), [batch()])


def test_peak_is_what_was_held_at_once():
    mib = 2**20
    older = [torch.zeros(mib)]

    def run():
        older.clear()  # 4 MiB less
        first = torch.zeros(2 * mib)  # 8
        second = torch.zeros(mib)  # 4
        del first
        third = torch.zeros(mib)  # 4
        return second, third

    assert _peak_bytes(torch.device('cpu'), run) == pytest.approx(12 * mib, abs=1000)
    assert _peak_bytes(torch.device('cpu'), lambda: None) == 0


def test_memory_counts_the_weights_of_what_runs(make):
    distiller = make(ROI_LOSSES)
    peak = measure(distiller, [batch()], 1, warmup=0).peak_memory_mb
    size = {
        name: 4 * sum(it.numel() for it in model.parameters()) / 1e6
        for name, model in dict(
            student_step=distiller.student, teacher_pass=distiller.teacher.detector
        ).items()
    }
    assert peak['teacher_pass'] > size['teacher_pass']
    assert peak['student_step'] > 2 * size['student_step']  # its gradients too
    assert peak['kd_step'] > 2 * size['student_step'] + size['teacher_pass']
    assert peak['kd_step'] > peak['student_step']


def test_random_images_and_boxes():
    data = random_batch((60, 80), images=3, classes=2, objects=50)
    assert [tuple(image.shape) for image in data['inputs']] == [
        (3, 60, 80),
        (3, 60, 70),
        (3, 60, 80),
    ]
    for image, sample in zip(data['inputs'], data['data_samples'], strict=True):
        assert sample.img_shape == image.shape[1:]
        boxes, labels = sample.gt_instances.bboxes, sample.gt_instances.labels
        assert len(boxes) == 50 and set(labels.tolist()) == {0, 1}
        assert (boxes >= 0).all() and (boxes[:, 2:] <= boxes.new_tensor(image.shape[:0:-1])).all()
        assert (boxes[:, 2:] - boxes[:, :2] > 5).all()
    again = random_batch((60, 80), images=3, classes=2, objects=50)
    assert all(torch.equal(a, b) for a, b in zip(data['inputs'], again['inputs'], strict=True))
