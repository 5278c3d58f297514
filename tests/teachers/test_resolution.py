"""A teacher that sees the images larger or smaller than the student."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi
from tiny_dense import single_stage
from tiny_models import (
    CLASSES,
    ROI_LOSSES,
    RPN_LOSSES,
    batch,
    faster_rcnn,
    feature_loss,
    save_teacher,
)
from tiny_transformers import transformer

from mmkd.alignments.dense_output import HEAD
from mmkd.alignments.valuable_region import valuable_region
from mmkd.errors import ConfigError
from mmkd.families.dense_heads import predicted_boxes
from mmkd.teachers.resolution import resize

GIOU = dict(
    ROI_LOSSES['loss_kd_bbox'],
    type='GIoU',
    align=dict(type='RoIBoxAlignment', coordinates='box', select='all'),
)
GFL_BOXES = dict(
    type='L1', student='bbox_head', teacher='bbox_head', align=dict(type='DenseBoxAlignment')
)
STRIDES = (4, 8, 16, 32, 64)


class Run:
    """One step of a distillation: its recorders, its teacher's images, and what losses compare.

    The teacher's images are made here a second time, with what torch offers.
    """

    def __init__(self, distiller, size=(96, 128)):
        self.distiller = distiller
        data = distiller.data_preprocessor(batch(size=size), True)
        self.inputs, self.samples = data['inputs'], data['data_samples']
        distiller.prepare()
        self.teacher = distiller.teacher.detector
        self.record = distiller._recorders_of(tuple(distiller.entries))
        with self.record.student:
            distiller.student(**data, mode='loss')
        (self.teacher_pass,) = self.record.passes
        self.teacher_pass.run_teacher(
            self.inputs, self.samples, distiller.data_preprocessor, self.record.student
        )
        self.record.run_joint_parts()
        scale = distiller.teacher.scale
        self.large = F.interpolate(
            self.inputs,
            scale_factor=scale,
            mode='bilinear',
            align_corners=False,
            antialias=scale < 1,
        )
        divisor = self.teacher.data_preprocessor.pad_size_divisor
        height, width = self.large.shape[2:]
        self.large = F.pad(self.large, (0, -width % divisor, 0, -height % divisor))

    def step(self, name):
        return self.record.steps(self.distiller.entries[name], self.samples)['teacher']

    def pairs(self, name):
        entry, step = self.distiller.entries[name], self.step(name)
        ours = step.student_record[entry.student]
        theirs = step.teacher_record[entry.teacher]
        return entry.aligns['teacher'](ours, theirs, step)


@pytest.fixture
def distil(tmp_path):
    def distil(config, losses, scale, student=None, **options):
        checkpoint = save_teacher(tmp_path / 'teacher.pth', config)
        distiller = MODELS.build(
            dict(
                type='Distiller',
                student=student or config,
                teacher=dict(
                    config=dict(model=config), checkpoint=str(checkpoint), scale=scale, **options
                ),
                losses=copy.deepcopy(losses),
                classes=CLASSES,
            )
        )
        distiller.train().init_weights()
        return distiller

    return distil


# ------------------------------------------------------------------------------ proposals


@pytest.mark.parametrize('scale', [2, 1.5, 0.5])
def test_the_teachers_head_evaluates_the_students_proposals_where_they_lie(distil, scale):
    run = Run(distil(faster_rcnn(), dict(ROI_LOSSES, loss_giou=GIOU), scale))
    rois = run.teacher_pass.shared['rois']['roi_head.bbox_head']
    assert rois[:, 3].max() <= 128 and len(rois) == 32  # in the student's pixels
    with torch.no_grad():
        features = run.teacher.extract_feat(run.large)
        found = run.teacher.roi_head._bbox_forward(
            features, rois * rois.new_tensor([1, *[scale] * 4])
        )
    record = run.step('loss_kd_cls').teacher_record
    entry = run.distiller.entries['loss_kd_cls']
    assert torch.allclose(record[entry.teacher], found['cls_score'], atol=1e-4)
    (pair,) = run.pairs('loss_giou')
    deltas = found['bbox_pred'].reshape(len(rois), 3, 4)
    classes = found['cls_score'][:, :3].argmax(-1)
    boxes = run.teacher.roi_head.bbox_head.bbox_coder.decode(
        rois[:, 1:] * scale, deltas[torch.arange(len(rois)), classes]
    )
    size = torch.tensor([sample.img_shape[::-1] for sample in run.samples]).repeat(1, 2)
    assert torch.allclose(pair.teacher * size[rois[:, 0].long()], boxes / scale, atol=1e-3)


def test_the_teachers_proposals_are_brought_to_the_student(distil):
    losses = dict(loss_kd_cls=ROI_LOSSES['loss_kd_cls'])
    run = Run(distil(faster_rcnn(), losses, 2, proposals='teacher'))
    rois = run.teacher_pass.shared['rois']['roi_head.bbox_head']
    _, samples, _ = resize(run.inputs, run.samples, 2)
    with torch.no_grad():
        features = run.teacher.extract_feat(run.large)
        found = run.teacher.rpn_head.predict(features, samples, rescale=False)
        large = bbox2roi([each.bboxes for each in found])
        ours = run.distiller.roi_head._bbox_forward(run.distiller.extract_feat(run.inputs), rois)
        theirs = run.teacher.roi_head._bbox_forward(features, large)
    assert large[:, 3].max() > 128  # beyond the student's width
    assert torch.allclose(rois[:, 1:], large[:, 1:] / 2, atol=1e-3)
    step, entry = run.step('loss_kd_cls'), run.distiller.entries['loss_kd_cls']
    assert torch.allclose(step.teacher_record[entry.teacher], theirs['cls_score'], atol=1e-4)
    assert ours['cls_score'].shape == step.student_record[entry.student].shape


# ------------------------------------------------------------------------------ priors


def test_anchors_of_other_strides_cover_the_same_places(distil):
    run = Run(distil(faster_rcnn(), RPN_LOSSES, 2))
    (pair,) = run.pairs('loss_kd_rpn_cls')
    with torch.no_grad():
        scores, _ = run.teacher.rpn_head(run.teacher.extract_feat(run.large))
    wanted = [
        level.permute(0, 2, 3, 1).reshape(-1, 1) for level in scores[1:]
    ]  # its strides 8 to 64
    assert torch.allclose(pair.teacher, torch.cat(wanted), atol=1e-4)
    ours = run.step('loss_kd_rpn_cls').student_record[
        run.distiller.entries['loss_kd_rpn_cls'].student
    ]
    kept = [level.permute(0, 2, 3, 1).reshape(-1, 1) for level in ours[:4]]
    assert torch.equal(pair.student, torch.cat(kept))


@pytest.mark.parametrize('kind', ['GFL', 'RetinaNet', 'FCOS', 'RTMDet'])
@pytest.mark.parametrize('scale', [2, 0.5])
def test_boxes_of_dense_heads_are_fractions_of_each_image(distil, kind, scale):
    run = Run(distil(single_stage(kind), dict(loss_kd=GFL_BOXES), scale), size=(128, 192))
    (pair,) = run.pairs('loss_kd')
    head = run.teacher.bbox_head
    with torch.no_grad():
        levels = head(run.teacher.extract_feat(run.large))[1]
    count = len(levels) - 1
    own = range(1, count + 1) if scale == 2 else range(count)
    size = torch.tensor([sample.img_shape[::-1] for sample in run.samples]).repeat(1, 2)
    boxes = [predicted_boxes(head, index, levels[index]) / (size * scale)[:, None] for index in own]
    assert torch.allclose(pair.teacher, torch.cat([b.flatten(0, 1) for b in boxes]), atol=1e-4)


def test_the_valuable_region_lies_where_the_objects_are(distil):
    losses = dict(
        loss_kd=dict(
            GFL_BOXES, align=dict(type='DenseBoxAlignment', select='valuable', count_padding=True)
        )
    )
    run = Run(distil(single_stage('GFL'), losses, 2), size=(128, 192))
    (pair,) = run.pairs('loss_kd')
    generator = run.distiller.bbox_head.prior_generator
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    anchors = [
        generator.single_level_grid_priors(size, level, device='cpu')
        for level, size in enumerate(sizes)
    ]
    boxes = torch.cat([sample.gt_instances.bboxes for sample in run.samples])
    region = valuable_region(anchors, boxes, torch.arange(2).repeat_interleave(3), 2)
    region = torch.cat([level.flatten() for level in region])
    align, seen = run.distiller.entries['loss_kd'].align, run.step('loss_kd')
    teacher = align._output(seen.teacher_record[HEAD], 'teacher', seen)
    weight = pair.weight / align.selection.confidences(teacher, seen)
    assert region.max() > 0 and torch.allclose(weight, region, atol=1e-5)


# ------------------------------------------------------------------------------ maps and queries


def test_maps_of_the_same_size_are_compared(distil):
    run = Run(distil(faster_rcnn(channels=24), dict(loss_kd=feature_loss(24, 24)), 2))
    pairs = run.pairs('loss_kd')
    with torch.no_grad():
        maps = run.teacher.extract_feat(run.large)
    assert len(pairs) == 4
    assert all(
        torch.allclose(pair.teacher, m, atol=1e-5) for pair, m in zip(pairs, maps[1:], strict=True)
    )


@pytest.mark.parametrize(
    'scale, first, wanted',
    [
        (1.25, 0, [(32, 32), (16, 16), (8, 8), (4, 4)]),
        # A teacher's map of 3x3 of its own level P6 is not that of the student's P5.
        (1.5, 1, [(24, 24), (12, 12), (6, 6), (3, 3)]),
    ],
)
def test_maps_of_other_sizes_are_resized(distil, scale, first, wanted):
    losses = dict(loss_kd=feature_loss(24, 24))
    size = (wanted[0][0] * 4,) * 2
    run = Run(distil(faster_rcnn(channels=24), losses, scale), size)
    pairs = run.pairs('loss_kd')
    reach = [max(1, round(length * scale)) for length in run.inputs.shape[2:]]
    with torch.no_grad():
        # What only the padding to a multiple adds at the right and at the bottom is not compared.
        maps = [
            level[:, :, : math.ceil(reach[0] / stride), : math.ceil(reach[1] / stride)]
            for level, stride in zip(run.teacher.extract_feat(run.large), STRIDES, strict=False)
        ][first:]
    assert [tuple(pair.student.shape[2:]) for pair in pairs[:4]] == wanted
    for pair, map_ in zip(pairs[:4], maps, strict=False):
        size = pair.student.shape[2:]
        shrinks = map_.shape[2] > size[0]
        by_hand = F.interpolate(map_, size, mode='bilinear', antialias=shrinks)
        assert torch.allclose(pair.teacher, by_hand, atol=1e-5)


def test_queries_see_the_larger_image_and_its_padding(distil):
    align = dict(type='HungarianQueryAlignment', of='box')
    losses = dict(
        loss_kd=dict(type='L1', student='bbox_head', teacher='bbox_head', align=align),
        loss_memory=dict(
            type='MSE',
            student='encoder',
            teacher='encoder',
            align=dict(type='EncoderMemoryAlignment'),
        ),
    )
    distiller = distil(transformer('DETR'), losses, 2)
    run = Run(distiller)
    _, samples, _ = resize(run.inputs, run.samples, 2)
    assert samples[1].img_shape == (192, 224) and samples[1].batch_input_shape == (192, 256)
    with torch.no_grad():
        wanted = run.teacher.bbox_head(
            **{
                name: value
                for name, value in run.teacher.forward_transformer(
                    run.teacher.extract_feat(run.large), samples
                ).items()
                if name != 'memory'
            }
        )
    record = run.step('loss_kd').teacher_record[distiller.entries['loss_kd'].teacher]
    assert torch.allclose(record[1], wanted[1], atol=1e-4)
    (pair,) = run.pairs('loss_memory')
    assert pair.teacher.shape == pair.student.shape and len(pair.teacher) == 2 * 3 * 4


# ------------------------------------------------------------------------------ images


def test_images_are_resized_with_what_is_known_of_them():
    data = MODELS.build(faster_rcnn()['data_preprocessor'])(batch(size=(90, 120)), False)
    images, samples, factors = resize(data['inputs'], data['data_samples'], 0.7)
    assert data['inputs'].shape[2:] == (96, 128)
    assert images.shape[2:] == (67, 90) and factors == (90 / 128, 67 / 96)
    assert samples[1].batch_input_shape == (67, 90)
    assert samples[1].img_shape == (round(90 * 67 / 96), round(104 * 90 / 128))
    assert samples[1].scale_factor == factors and samples[1].ori_shape == (90, 104)
    assert 'gt_instances' not in samples[0] and 'gt_instances' in data['data_samples'][0]
    assert data['data_samples'][1].img_shape == (90, 104)


@pytest.mark.parametrize('scale', [0, -1, '2', True, None, float('nan'), float('inf'), (2, 2)])
def test_a_scale_that_is_no_positive_number_is_refused(distil, scale):
    with pytest.raises(ConfigError, match=r'teacher\.scale: must be a number above 0, got '):
        distil(faster_rcnn(), ROI_LOSSES, scale)


@pytest.mark.parametrize(
    'model, losses, message',
    [
        (faster_rcnn, RPN_LOSSES, 'no common level: strides .* 1.5 times as large; .*power of two'),
        (lambda: single_stage('GFL'), dict(loss_kd=GFL_BOXES), 'no common level.* power of two'),
    ],
)
def test_priors_that_do_not_meet_are_refused(distil, model, losses, message):
    with pytest.raises(ConfigError, match=message):
        distil(model(), losses, 1.5).prepare()


def test_a_crossed_head_takes_maps_of_its_own_scale_only(distil):
    align = dict(type='DenseBoxAlignment', crossed='bbox_head.reg_convs.0.conv')
    losses = dict(loss_kd=dict(GFL_BOXES, student='bbox_head.reg_convs.0.conv', align=align))
    with pytest.raises(ConfigError, match=r'must be 1, got 2.*set teacher\.scale=1'):
        distil(single_stage('GFL'), losses, 2).prepare()


def test_the_students_average_may_see_larger_images(distil):
    distiller = MODELS.build(
        dict(
            type='Distiller',
            student=faster_rcnn(),
            teacher=dict(ema=dict(momentum=0.1), scale=2),
            losses=dict(loss_kd=feature_loss(16, 16)),
            classes=CLASSES,
        )
    )
    distiller.train().init_weights()
    run = Run(distiller)
    assert len(run.pairs('loss_kd')) == 4
