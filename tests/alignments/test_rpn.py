"""Pairing RPN heads."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from tiny_models import faster_rcnn

from mmkd.alignments import Step
from mmkd.alignments.rpn import OBJECTNESS, RPNBoxAlignment, RPNClassAlignment
from mmkd.errors import ConfigError
from mmkd.recorder import Recorder

STRIDES = (4, 8, 16, 32, 64)


def maps(width, seed, strides=STRIDES, size=64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3 * width, size // s, size // s, generator=generator) for s in strides]


def step(student, teacher, objectness):
    record = Recorder(teacher, [])
    record._calls = {OBJECTNESS: [objectness]}
    return Step([], student, teacher, Recorder(student, []), record)


def test_rows_are_the_anchors_of_mmdet():
    student = MODELS.build(faster_rcnn())
    ours, theirs = maps(4, 1), maps(4, 2)
    align = RPNBoxAlignment(confidence=False)
    align.check(student, student, {})
    pair = align(ours, theirs, step(student, student, maps(1, 3)))[0]
    # mmdet flattens (N, A * 4, H, W) by moving channels last; the first image's rows of each level.
    flat = [level.permute(0, 2, 3, 1)[0].reshape(-1, 4) for level in theirs]
    start = 0
    for level, rows in zip(theirs, flat, strict=True):
        assert torch.equal(pair.teacher[start : start + len(rows)], rows)
        start += 2 * level.shape[2] * level.shape[3] * 3
    assert start == len(pair.teacher) == len(pair.student) and pair.weight is None


def test_deltas_count_by_the_teachers_objectness():
    student = MODELS.build(faster_rcnn())
    scores = maps(1, 3)
    align = RPNBoxAlignment()
    align.check(student, student, {})
    weight = align(maps(4, 1), maps(4, 2), step(student, student, scores))[0].weight
    cell = scores[0][1, :, 2, 3].sigmoid()  # second image, row 2, column 3 of the first level
    start = (16 * 16 + 2 * 16 + 3) * 3
    assert torch.allclose(weight[start : start + 3], cell)


def test_deltas_are_converted_to_the_students_normalisation():
    student = MODELS.build(faster_rcnn())
    teacher = MODELS.build(faster_rcnn(rpn_head=dict(bbox_coder=dict(target_stds=[0.5] * 4))))
    align = RPNBoxAlignment(confidence=False)
    align.check(student, teacher, {})
    ours, theirs = maps(4, 1), maps(4, 2)
    pair = align(ours, theirs, step(student, teacher, None))[0]
    first = theirs[0].permute(0, 2, 3, 1)[0].reshape(-1, 4)
    assert torch.allclose(pair.teacher[: len(first)], first * 0.5)


def test_levels_are_paired_by_stride():
    fewer = faster_rcnn()
    fewer['rpn_head']['anchor_generator'] = dict(
        type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32]
    )
    student, teacher = MODELS.build(faster_rcnn()), MODELS.build(fewer)
    align = RPNClassAlignment()
    align.check(student, teacher, {})
    assert align.levels == [(1, 0), (2, 1), (3, 2)] and align.activation == 'sigmoid'
    ours, theirs = maps(1, 1), maps(1, 2, strides=(8, 16, 32))
    pair = align(ours, theirs, step(student, teacher, None))[0]
    assert torch.equal(pair.student[:192, 0], ours[1].permute(0, 2, 3, 1)[0].reshape(-1))
    with pytest.raises(
        ConfigError, match=r'RPN level 1 .*the same shape, got \(2, 8, 8, 3, 1\) and \(2, 4'
    ):
        align(ours, maps(1, 2, strides=(8, 16, 32), size=32), step(student, teacher, None))


def test_what_cannot_be_paired_says_why():
    student = MODELS.build(faster_rcnn())
    scaled = MODELS.build(faster_rcnn(rpn_head=dict(anchor_generator=dict(scales=[8]))))
    with pytest.raises(ConfigError, match='the same anchors at stride .*same anchor_generator'):
        RPNClassAlignment().check(student, scaled, {})
    shifted = MODELS.build(
        faster_rcnn(rpn_head=dict(anchor_generator=dict(strides=[5, 10, 20, 40, 80])))
    )
    with pytest.raises(ConfigError, match='no common level'):
        RPNClassAlignment().check(student, shifted, {})
    softmax = MODELS.build(faster_rcnn(rpn_head=dict(loss_cls=dict(use_sigmoid=False))))
    with pytest.raises(
        ConfigError, match=r'scores per anchor, got 1 \(student\) and 2 \(teacher\)'
    ):
        RPNClassAlignment().check(student, softmax, {})
