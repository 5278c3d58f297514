"""mmkd/alignments/dense.py, on heads' outputs made by hand."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS, TASK_UTILS
from tiny_dense import single_stage

from mmkd.alignments import ClassMap, Step
from mmkd.alignments.dense import HEAD
from mmkd.errors import ConfigError

SIZES = ((8, 10), (4, 5), (2, 3), (1, 2), (1, 1))
CLASSES = ('cat', 'dog', 'person')


def outputs(model, seed=0, images=2):
    """What its head gives of random features: maps a level, of classes and boxes."""
    random = torch.Generator().manual_seed(seed)
    head = model.bbox_head
    priors = head.prior_generator.num_base_priors[0]
    width = 4 * (getattr(head, 'reg_max', 0) + 1)
    return tuple(
        [torch.randn(images, priors * w, *size, generator=random) * 3 for size in SIZES]
        for w in (head.cls_out_channels, width)
    )


def make(student, teacher, classes=CLASSES, **options):
    ours, theirs = outputs(student), outputs(teacher, seed=1)
    return Step(
        data_samples=[],
        student=student,
        teacher=teacher,
        student_record={HEAD: ours},
        teacher_record={HEAD: theirs},
        class_map=ClassMap(classes, CLASSES, **options),
    )


def pair_up(step, kind='DenseClassAlignment', **options):
    alignment = TASK_UTILS.build(dict(type=kind, **options))
    alignment.check(step.student, step.teacher, {})
    return alignment(step.student_record[HEAD], step.teacher_record[HEAD], step)[0]


def test_rows_are_the_priors_of_every_level_as_the_head_orders_them():
    """Nine anchors a place, three classes each: found again one by one."""
    model = MODELS.build(single_stage('RetinaNet'))
    step = make(model, model)
    pair = pair_up(step)
    assert pair.student.shape == (2 * 9 * sum(h * w for h, w in SIZES), 3)
    row = 0
    for level in step.student_record[HEAD][0]:
        for image in range(2):
            for y in range(level.shape[2]):
                for x in range(level.shape[3]):
                    for anchor in range(9):
                        wanted = level[image, 3 * anchor : 3 * anchor + 3, y, x]
                        assert torch.equal(pair.student[row], wanted)
                        row += 1
    assert torch.allclose(pair.weight, pair.teacher.sigmoid().amax(-1))
    assert pair_up(step, confidence=False).weight is None


def test_the_surest_priors_can_be_chosen():
    model = MODELS.build(single_stage('ATSS'))
    step = make(model, model)
    every, few = pair_up(step), pair_up(step, num_priors=7)
    best = every.weight.topk(7).indices
    assert torch.equal(few.student, every.student[best])
    assert torch.equal(few.weight, every.weight[best])
    assert len(pair_up(step, num_priors=10**6).student) == len(every.student)


def test_classes_go_through_the_class_map():
    student = MODELS.build(single_stage('ATSS', classes=2))
    step = make(student, MODELS.build(single_stage('ATSS')), ('person', 'cat'))
    pair = pair_up(step)
    theirs = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, 3) for m in step.teacher_record[HEAD][0]])
    assert torch.equal(pair.teacher, theirs[:, [2, 0]])
    assert torch.allclose(pair.weight, theirs[:, [2, 0]].sigmoid().amax(-1))


def test_levels_are_paired_by_stride():
    student = MODELS.build(
        single_stage(
            'ATSS',
            neck=dict(start_level=2, num_outs=3),
            bbox_head=dict(anchor_generator=dict(strides=[16, 32, 64])),
        )
    )
    teacher = MODELS.build(single_stage('ATSS'))
    step = make(student, teacher)
    step.student_record[HEAD] = tuple(levels[1:4] for levels in outputs(student))
    pair = pair_up(step)
    assert len(pair.student) == 2 * sum(h * w for h, w in SIZES[1:4])
    wanted = step.teacher_record[HEAD][0][1].permute(0, 2, 3, 1).reshape(-1, 3)
    assert torch.equal(pair.teacher[: len(wanted)], wanted)


def test_each_edge_of_a_box_is_a_distribution():
    model = MODELS.build(single_stage('GFL'))
    step = make(model, model)
    pair = pair_up(step, 'DenseDistributionAlignment', num_priors=5)
    classes = pair_up(step, num_priors=5)
    assert pair.student.shape == (20, 17)
    assert torch.equal(pair.weight, classes.weight.repeat_interleave(4))
    raw = torch.cat(
        [m.permute(0, 2, 3, 1).reshape(-1, 4, 17) for m in step.student_record[HEAD][1]]
    )
    best = pair_up(step).weight.topk(5).indices
    assert torch.equal(pair.student, raw[best].flatten(0, 1))


def test_other_outputs_are_refused():
    model = MODELS.build(single_stage('ATSS'))
    step = make(model, model)
    alignment = TASK_UTILS.build(dict(type='DenseClassAlignment'))
    alignment.check(model, model, {})
    good = step.teacher_record[HEAD]
    with pytest.raises(ConfigError, match='not one map a level of its 5; record bbox_head'):
        alignment(good[0][:3], good, step)
    with pytest.raises(ConfigError, match='4 channels, no multiple of 3'):
        alignment(good[1], good, step)
    with pytest.raises(ConfigError, match='num_priors=0'):
        TASK_UTILS.build(dict(type='DenseClassAlignment', num_priors=0))
