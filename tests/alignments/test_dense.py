"""mmkd/alignments/dense.py, on heads' outputs made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from tiny_dense import single_stage

from mmkd.alignments import ClassMap, Step
from mmkd.alignments.dense_output import HEAD
from mmkd.alignments.valuable_region import valuable_region
from mmkd.errors import ConfigError, PathError
from mmkd.families.dense_heads import LOSS_CLS as LABELS
from mmkd.families.dense_heads import dense_head
from mmkd.losses import MSE
from mmkd.recorder import Recorder, Source

SIZES = ((8, 10), (4, 5), (2, 3), (1, 2), (1, 1))
CLASSES = ('cat', 'dog', 'person')


def outputs(model, seed=0, images=2):
    """Random outputs of its head: maps per level, of classes, boxes and, where it has it, quality."""
    random = torch.Generator().manual_seed(seed)
    head = model.bbox_head
    priors = head.prior_generator.num_base_priors[0]
    width = 4 * (getattr(head, 'reg_max', 0) + 1)
    return tuple(
        [torch.randn(images, priors * w, *size, generator=random) * 3 for size in SIZES]
        for w in (head.cls_out_channels, width, 1)[: 3 if dense_head(head).quality else 2]
    )


def scores(parts, classes=slice(None)):
    """The scores that a head predicts, shape (priors, classes), from its raw outputs."""
    probability = rows_of(parts[0]).sigmoid()[:, classes]
    return probability if len(parts) < 3 else probability * rows_of(parts[2]).sigmoid()


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
    assert torch.allclose(pair.weight, scores(step.teacher_record[HEAD], [2, 0]).amax(-1))


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
    with pytest.raises(
        ConfigError, match='must have one map per level .5 levels.; record bbox_head'
    ):
        alignment(good[0][:3], good, step)
    with pytest.raises(ConfigError, match='a multiple of 3 channels, got 4'):
        alignment(good[1], good, step)
    with pytest.raises(ConfigError, match='num_priors: must be at least 1, got 0'):
        TASK_UTILS.build(dict(type='DenseClassAlignment', num_priors=0))


# ------------------------------------------------------------------------------------- boxes


def with_images(step):
    metainfo = [dict(img_shape=(64, 80)), dict(img_shape=(60, 76))]
    step.data_samples = [DetDataSample(metainfo=meta) for meta in metainfo]
    return step


def test_boxes_of_unlike_heads_are_compared_in_fractions_of_the_image():
    student, teacher = (MODELS.build(single_stage(kind)) for kind in ('ATSS', 'FCOS'))
    step = with_images(make(student, teacher))
    theirs = [level.abs() for level in step.teacher_record[HEAD][1]]
    step.teacher_record[HEAD] = (step.teacher_record[HEAD][0], theirs, step.teacher_record[HEAD][2])
    pair = pair_up(step, 'DenseBoxAlignment')
    assert pair.student.shape == (2 * sum(h * w for h, w in SIZES), 4)
    # The last prior of the first level in the second image, by hand: its point is (76, 60).
    row = 2 * 8 * 10 - 1
    left, top, right, bottom = theirs[0][1, :, -1, -1].tolist()
    wanted = [(76 - left) / 76, (60 - top) / 60, (76 + right) / 76, (60 + bottom) / 60]
    assert pair.teacher[row].tolist() == pytest.approx(wanted, rel=1e-5)
    # The student's anchor there is a square of 64 pixels around the place's corner (72, 56).
    dx, dy, dw, dh = step.student_record[HEAD][1][0][1, :, -1, -1].tolist()
    x, y = 72 + 64 * 0.1 * dx, 56 + 64 * 0.1 * dy
    w, h = 64 * math.exp(0.2 * dw), 64 * math.exp(0.2 * dh)
    wanted = [(x - w / 2) / 76, (y - h / 2) / 60, (x + w / 2) / 76, (y + h / 2) / 60]
    assert pair.student[row].tolist() == pytest.approx(wanted, rel=1e-4)
    assert torch.allclose(pair.weight, scores(step.teacher_record[HEAD]).amax(-1))


def test_heads_with_other_numbers_of_boxes_a_place_are_refused():
    student, teacher = (MODELS.build(single_stage(kind)) for kind in ('RetinaNet', 'FCOS'))
    with pytest.raises(ConfigError, match='the same priors .*, got 9 per position'):
        pair_up(with_images(make(student, teacher)), 'DenseBoxAlignment')


def test_centerness_is_one_score_per_position():
    student, teacher = seeded('FCOS', 1), seeded('FCOS', 2)
    step = crossed_step(student, teacher)
    pair = pair_up(step, 'DenseCenternessAlignment')
    wanted = torch.cat([level.flatten()[:, None] for level in step.teacher_record[HEAD][2]])
    assert torch.equal(pair.teacher, wanted) and pair.student.shape == wanted.shape
    with pytest.raises(ConfigError, match='needs centerness, but the student, a GFL, has none'):
        pair_up(make(seeded('GFL', 1), seeded('ATSS', 2)), 'DenseCenternessAlignment')


def yolox_step(classes=CLASSES, **options):
    """Heads of YOLOX with random outputs: classes, boxes and objectness."""
    student = MODELS.build(single_stage('YOLOX', classes=len(classes)))
    teacher = MODELS.build(single_stage('YOLOX'))
    sizes, random = SIZES[:3], torch.Generator().manual_seed(5)
    step = make(student, teacher, classes, **options)
    for record, model in ((step.student_record, student), (step.teacher_record, teacher)):
        record[HEAD] = tuple(
            [torch.randn(2, width, *size, generator=random) * 3 for size in sizes]
            for width in (model.bbox_head.num_classes, 4, 1)
        )
    return step


def rows_of(levels):
    return torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels])


def test_objectness_is_a_score_a_place():
    step = yolox_step()
    pair = pair_up(step, 'DenseObjectnessAlignment')
    assert torch.equal(pair.teacher, rows_of(step.teacher_record[HEAD][2]))
    assert torch.equal(pair.student, rows_of(step.student_record[HEAD][2]))
    assert pair.weight is None
    with pytest.raises(ConfigError, match='needs objectness, but the teacher, a ATSS, has none'):
        pair_up(make(seeded('ATSS', 1), seeded('ATSS', 2)), 'DenseObjectnessAlignment')


def test_objectness_of_classes_the_student_lacks_is_not_taught():
    """An object that is surely no cat is none to a student of cats; a cat is one as sure as before."""
    step = yolox_step(('cat',))
    classes, _, there = step.teacher_record[HEAD]
    classes[0][:, :, 0, 0] = torch.tensor([-9.0, 4.0, -9.0])
    classes[0][:, :, 0, 1] = torch.tensor([4.0, -9.0, 3.0])
    there[0][:, :, 0, :2] = 2.0
    pair = pair_up(step, 'DenseObjectnessAlignment')
    assert pair.teacher[0].item() < -8 and pair.teacher[1].item() == pytest.approx(2.0, abs=1e-4)
    scores = rows_of(classes).sigmoid()
    wanted = rows_of(there).sigmoid()[:, 0] * scores[:, 0] / scores.amax(-1)
    assert torch.allclose(pair.teacher.sigmoid()[:, 0], wanted, atol=1e-5)
    assert pair.teacher.isfinite().all()
    blind = yolox_step(('cat', 'bird'), exclude=['bird'])
    with pytest.raises(ConfigError, match='does not support class_map.exclude'):
        pair_up(blind, 'DenseObjectnessAlignment')


def test_the_teachers_confidence_can_be_the_normalizer():
    """Divided by what it sees, a batch counts the same with any number of empty places."""
    step = yolox_step()
    classes, _, there = step.teacher_record[HEAD]
    seen = (rows_of(classes).sigmoid().amax(-1) * rows_of(there)[:, 0].sigmoid()).sum()
    for kind in ('DenseClassAlignment', 'DenseObjectnessAlignment'):
        pair = pair_up(step, kind, normalizer='confidence')
        rows = (pair.student - pair.teacher).square().mean(-1)
        weight = torch.ones(len(rows)) if pair.weight is None else pair.weight
        value = MSE()(pair.student, pair.teacher, pair.weight) * pair.weight_sum / pair.total
        assert value.item() == pytest.approx(((rows * weight).sum() / seen).item(), rel=1e-4)
    blank = yolox_step()
    for level in blank.teacher_record[HEAD][2]:
        level.fill_(-40.0)  # nothing is to be seen
    pair = pair_up(blank, 'DenseObjectnessAlignment', normalizer='confidence')
    assert pair.total == 1


def test_scores_of_sigmoid_heads_may_be_taken_for_a_softmax():
    model = MODELS.build(single_stage('GFL'))
    for given, activation in ((None, 'sigmoid'), ('softmax', 'softmax')):
        alignment = TASK_UTILS.build(dict(type='DenseClassAlignment', activation=given))
        alignment.check(model, model, {})
        assert alignment.activation == activation


# ------------------------------------------------------------------- which priors, and how much


def labelled(step, seed=3):
    """Labels as mmdet hands them to the classification loss, level by level; most are background."""
    random = torch.Generator().manual_seed(seed)
    sizes = [level.shape[2] * level.shape[3] * 2 for level in step.student_record[HEAD][0]]
    labels = [torch.randint(0, 12, (size,), generator=random).clamp(max=3) for size in sizes]
    step.student_record[LABELS] = [(each, torch.rand(len(each))) for each in labels]
    return torch.cat(labels)


def test_labels_choose_the_priors():
    model = MODELS.build(single_stage('GFL'))
    step = make(model, model)
    foreground = (labelled(step) < 3).float()
    pair = pair_up(step, select='labels', confidence=False)
    assert torch.equal(pair.weight, foreground) and 0 < foreground.sum() < len(foreground)
    both = pair_up(step, select='labels')
    assert torch.equal(both.weight, pair_up(step).weight * foreground)
    edges = pair_up(step, 'DenseDistributionAlignment', select='labels')
    assert torch.equal(edges.weight, both.weight.repeat_interleave(4))
    # FCOS hands over all levels at once.
    step.student_record[LABELS] = torch.cat([labels for labels, _ in step.student_record[LABELS]])
    assert torch.equal(pair_up(step, select='labels').weight, both.weight)
    step.student_record[LABELS] = step.student_record[LABELS][:-1]
    with pytest.raises(
        ConfigError,
        match="align.select: 'labels' found labels of 217 priors, but the GFLHead has 218",
    ):
        pair_up(step, select='labels')


def test_the_valuable_priors_are_those_around_objects():
    model = MODELS.build(single_stage('GFL'))
    step = with_images(make(model, model))
    boxes = [[[4.0, 4, 50, 60], [30, 10, 70, 40]], [[10.0, 10, 70, 58]]]
    for sample, found in zip(step.data_samples, boxes, strict=True):
        sample.gt_instances = InstanceData(bboxes=torch.tensor(found))
    pair = pair_up(step, select='valuable', confidence=False)
    anchors = model.bbox_head.prior_generator.grid_priors(SIZES, device='cpu')
    every, image = torch.tensor(boxes[0] + boxes[1]), torch.tensor([0, 0, 1])
    values = valuable_region(anchors, every, image, 2)
    assert torch.equal(pair.weight, torch.cat([value.flatten() for value in values]))
    # Level by level and within them image by image, as the rows.
    assert torch.equal(pair.weight[80:160], values[0][1]) and pair.weight.any()
    points = MODELS.build(single_stage('FCOS'))
    with pytest.raises(ConfigError, match="align.select: 'valuable' needs anchors, but a FCOS has"):
        pair_up(make(points, points), select='valuable')


@pytest.mark.parametrize('confidence', [True, False])
def test_the_sum_is_divided_by_the_normalizer(confidence):
    model = MODELS.build(single_stage('GFL'))
    step = make(model, model)
    source = Source('bbox_head.loss_cls', capture='input', index='avg_factor')
    step.student_record[source] = [torch.tensor(5.0)] * 5  # one call per level
    options = dict(confidence=confidence)
    declared = dict(module='bbox_head.loss_cls', capture='input', index='avg_factor')
    for normalizer, number in ((declared, 5.0), (3, 3.0)):
        for kind in ('DenseClassAlignment', 'DenseDistributionAlignment'):
            pair = pair_up(step, kind, normalizer=normalizer, **options)
            rows = (pair.student - pair.teacher).square().mean(-1)
            weight = torch.ones(len(rows)) if pair.weight is None else pair.weight
            rows_per_prior = 4 if kind == 'DenseDistributionAlignment' else 1
            wanted = (rows * weight).sum() / rows_per_prior / number
            value = MSE()(pair.student, pair.teacher, pair.weight) * pair.weight_sum / pair.total
            assert value.item() == pytest.approx(wanted.item(), rel=1e-4)
    del step.student_record[source]
    assert pair_up(step, normalizer=declared, **options).total > 0


def test_options_are_checked():
    for options, message in (
        (dict(select='some'), "align.select: must be one of .*, got 'some'"),
        (dict(normalizer=0), 'align.normalizer: must be above 0, got 0'),
        (
            dict(crossed='neck'),
            "align.crossed: must be a layer of the teacher's bbox_head, got 'neck'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            TASK_UTILS.build(dict(type='DenseClassAlignment', **options))


# ----------------------------------------------------------------------------------- crossing

CROSSED = 'bbox_head.cls_convs.0.gn'


def crossed_step(student, teacher):
    """Both models' own maps behind the first layer of a tower, and the teacher's output."""
    features = [torch.randn(2, 32, *size) for size in SIZES]
    records = []
    for model, layer in ((student, 'cls'), (teacher, 'cls'), (student, 'reg'), (teacher, 'reg')):
        source = Source(f'bbox_head.{layer}_convs.0.gn', copy=True)
        with Recorder(model, [source, HEAD]) as record:
            model.bbox_head(features)
        records.append({source: record[source], HEAD: record[HEAD]})
    student_record, teacher_record = ({**records[i], **records[i + 2]} for i in (0, 1))
    classes = [ClassMap(CLASSES[: m.bbox_head.num_classes], CLASSES) for m in (student,)]
    step = Step([], student, teacher, student_record, teacher_record, class_map=classes[0])
    return with_images(step)


def cross(step, kind='DenseClassAlignment', tower='cls', **options):
    layer = f'bbox_head.{tower}_convs.0.gn'
    alignment = TASK_UTILS.build(dict(type=kind, crossed=layer, **options))
    alignment.check(step.student, step.teacher, {})
    maps = step.student_record[Source(layer, copy=True)]
    return alignment(maps, step.teacher_record[HEAD], step)[0]


def seeded(kind, seed, **options):
    torch.manual_seed(seed)
    model = MODELS.build(single_stage(kind, **options)).eval()
    for module in model.bbox_head.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.1)
    return model


def test_crossed_scores_are_the_rest_of_the_teachers_head_on_the_students_maps():
    student, teacher = seeded('GFL', 1, classes=2), seeded('GFL', 2).requires_grad_(False)
    step = crossed_step(student, teacher)
    pair = cross(step)
    # By hand, a level: to the teacher's statistics, activation, prediction.
    source, rows = Source(CROSSED, copy=True), []
    for ours, theirs in zip(step.student_record[source], step.teacher_record[source], strict=True):
        scaled = torch.empty_like(ours)
        for c in range(ours.shape[1]):
            single = ours[:, c].numel() < 2
            own, other = (side[:, c].std(unbiased=not single) for side in (ours, theirs))
            scaled[:, c] = (ours[:, c] - ours[:, c].mean()) / (own + 1e-6) * other
            scaled[:, c] += theirs[:, c].mean()
        scores = teacher.bbox_head.gfl_cls(scaled.relu())
        rows.append(scores.permute(0, 2, 3, 1).reshape(-1, 3)[:, :2])
    assert torch.allclose(pair.student, torch.cat(rows), atol=1e-5)
    gradient = torch.autograd.grad(pair.student.sum(), student.bbox_head.cls_convs[0].conv.weight)
    assert gradient[0].any()
    wanted = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, 3) for m in step.teacher_record[HEAD][0]])
    assert torch.equal(pair.teacher, wanted[:, :2])


def test_a_student_that_is_the_teacher_crosses_to_the_same():
    model = seeded('GFL', 1)
    step = crossed_step(model, model)
    for kind, tower in (
        ('DenseClassAlignment', 'cls'),
        ('DenseBoxAlignment', 'reg'),
        ('DenseDistributionAlignment', 'reg'),
    ):
        pair = cross(step, kind, tower)
        assert torch.allclose(pair.student, pair.teacher, atol=1e-4), kind


def test_heads_of_other_kinds_can_cross():
    """What predicts is the teacher's head, so priors, coding and classes of the student's do not matter."""
    student, teacher = seeded('FCOS', 1), seeded('GFL', 2)
    pair = cross(crossed_step(student, teacher), 'DenseDistributionAlignment', 'reg')
    assert pair.student.shape[-1] == 17 and pair.student.isfinite().all()


def test_maps_that_cannot_take_the_place_are_refused():
    student, teacher = seeded('GFL', 1), seeded('GFL', 2)
    step = crossed_step(student, teacher)
    source = Source(CROSSED, copy=True)
    step.student_record[source] = [level[:, :8] for level in step.student_record[source]]
    with pytest.raises(ConfigError, match=r'\(2, 8, 8, 10\).*ConvConnector'):
        cross(step)
    with pytest.raises(PathError, match="no layer 'cls_convs.9.gn'"):
        TASK_UTILS.build(
            dict(type='DenseClassAlignment', crossed='bbox_head.cls_convs.9.gn')
        ).check(student, teacher, {})
    other = seeded(
        'GFL', 1, neck=dict(num_outs=3), bbox_head=dict(anchor_generator=dict(strides=[8, 16, 32]))
    )
    with pytest.raises(ConfigError, match='align.crossed: both heads must have the same strides'):
        TASK_UTILS.build(dict(type='DenseClassAlignment', crossed=CROSSED)).check(
            other, teacher, {}
        )
