"""Pairing RoI heads, against the two heads run by hand."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from tiny_models import CLASSES, ROI_LOSSES, batch, cascade_rcnn, faster_rcnn, save_teacher

from mmkd.alignments import ClassMap, Step
from mmkd.alignments.roi import RoIBoxAlignment, RoIClassAlignment
from mmkd.errors import ConfigError
from mmkd.losses import MSE, GIoU, KLDivergence
from mmkd.recorder import Recorder, Source

HEAD = 'roi_head.bbox_head'
LABELS = Source(f'{HEAD}.loss_cls', capture='input', index=1)
CLASSIFIER = Source(f'{HEAD}.fc_cls')
ROIS = torch.tensor(
    [[0.0, 4, 6, 40, 50], [0, 10, 10, 80, 70], [1, 30, 20, 90, 88], [1, 0, 0, 20, 20]]
)


class Scene:
    """Student and teacher with known outputs on four proposals, of two images of unequal size."""

    def __init__(self, student_classes=CLASSES, teacher_classes=CLASSES, teacher=None, **class_map):
        self.student = MODELS.build(faster_rcnn(classes=len(student_classes)))
        self.teacher = MODELS.build(teacher or faster_rcnn(classes=len(teacher_classes)))
        generator = torch.Generator().manual_seed(3)
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        self.student_cls = draw(4, len(student_classes) + 1)
        self.teacher_cls = draw(4, len(teacher_classes) + 1) * 2
        self.student_reg = draw(4, 4 * len(student_classes))
        agnostic = self.teacher.roi_head.bbox_head.reg_class_agnostic
        self.teacher_reg = draw(4, 4 if agnostic else 4 * len(teacher_classes))
        self.labels = torch.tensor([0, len(student_classes), 1, len(student_classes) - 1])
        student, teacher = Recorder(self.student, []), Recorder(self.teacher, [])
        student._calls = {LABELS: [[self.labels]]}
        teacher._calls = {CLASSIFIER: [[self.teacher_cls]]}
        samples = batch(size=(100, 200))['data_samples']
        self.step = Step(
            data_samples=samples,
            student=self.student,
            teacher=self.teacher,
            student_record=student,
            teacher_record=teacher,
            class_map=ClassMap(student_classes, teacher_classes, **class_map),
            shared=dict(rois={HEAD: ROIS}),
        )

    def pair(self, align, proposals='student'):
        align.bind(Source(HEAD), Source(HEAD), align.needs_target)
        align.check(self.student, self.teacher, dict(proposals=proposals))
        if isinstance(align, RoIBoxAlignment):
            return align(self.student_reg, self.teacher_reg, self.step)[0]
        return align(self.student_cls, self.teacher_cls, self.step)[0]


def test_class_scores_of_equal_heads_pass_untouched():
    scene = Scene()
    pair = scene.pair(RoIClassAlignment())
    assert pair.student is scene.student_cls and pair.teacher is scene.teacher_cls
    assert pair.weight is None


def test_class_scores_go_through_the_class_map():
    scene = Scene(('dog', 'cat'), ('cat', 'horse', 'dog'))
    pair = scene.pair(RoIClassAlignment(confidence=True))
    p = scene.teacher_cls.softmax(-1)
    merged = torch.stack([p[:, 2], p[:, 0], p[:, 1] + p[:, 3]], 1)
    assert torch.allclose(pair.teacher.softmax(-1), merged, atol=1e-6)
    assert torch.allclose(pair.weight, merged.max(1).values, atol=1e-6)


def test_proposals_on_excluded_classes_do_not_count():
    scene = Scene(('cat', 'unicorn'), ('cat',), exclude=['unicorn'])
    scene.labels[:] = torch.tensor([0, 1, 2, 1])
    for align in (
        RoIClassAlignment(),
        RoIClassAlignment(confidence=True),
        RoIBoxAlignment(select='all'),
    ):
        weight = scene.pair(align).weight
        assert (weight > 0).tolist() == [True, False, True, False]


def test_boxes_are_compared_at_the_labelled_class():
    scene = Scene(('dog', 'cat'), ('cat', 'horse', 'dog'))
    scene.labels[:] = torch.tensor([0, 2, 1, 0])
    pair = scene.pair(RoIBoxAlignment())
    assert pair.weight.tolist() == [1, 0, 1, 1]
    student, teacher = scene.student_reg.view(4, 2, 4), scene.teacher_reg.view(4, 3, 4)
    for row, ours, theirs in ((0, 0, 2), (2, 1, 0), (3, 0, 2)):
        assert torch.equal(pair.student[row], student[row, ours])
        assert torch.equal(pair.teacher[row], teacher[row, theirs])


def test_weights_are_the_teachers_probability_of_the_labelled_class():
    scene = Scene(('dog', 'cat'), ('cat', 'dog'))
    scene.labels[:] = torch.tensor([0, 2, 1, 0])
    weight = scene.pair(RoIBoxAlignment(confidence=True)).weight
    p = scene.teacher_cls.softmax(-1)
    assert torch.allclose(weight, torch.stack([p[0, 1], p.new_zeros(()), p[2, 0], p[3, 1]]))


def test_the_teacher_may_say_what_is_foreground():
    scene = Scene()
    scene.teacher_cls[:] = torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 9], [0, 0, 9, 8], [0, 8, 0, 9]])
    for align in (RoIBoxAlignment(select='teacher'), RoIBoxAlignment()):
        pair = scene.pair(align, proposals='teacher')
        assert pair.weight.tolist() == [1, 0, 1, 0]
        assert torch.equal(pair.student[2], scene.student_reg.view(4, 3, 4)[2, 2])
    every = scene.pair(RoIBoxAlignment(select='all'))
    assert every.weight.tolist() == [1, 1, 1, 1]
    assert torch.equal(every.student[3], scene.student_reg.view(4, 3, 4)[3, 1])


@pytest.mark.parametrize('agnostic', [False, True])
def test_deltas_of_another_normalisation_mean_the_same_boxes(agnostic):
    coder = dict(target_means=[0.1, 0.0, -0.1, 0.2], target_stds=[0.05, 0.1, 0.3, 0.4])
    head = dict(bbox_head=dict(bbox_coder=coder, reg_class_agnostic=agnostic))
    scene = Scene(teacher=faster_rcnn(roi_head=head))
    pair = scene.pair(RoIBoxAlignment(select='all'))
    boxes = scene.pair(RoIBoxAlignment(select='all', coordinates='box'))
    student_coder = scene.student.roi_head.bbox_head.bbox_coder
    size = torch.tensor([[200.0, 100, 200, 100]] * 2 + [[184.0, 100, 184, 100]] * 2)
    again = student_coder.decode(ROIS[:, 1:], pair.teacher) / size
    assert torch.allclose(again, boxes.teacher, atol=1e-4)
    assert torch.allclose(
        student_coder.decode(ROIS[:, 1:], pair.student) / size, boxes.student, atol=1e-5
    )
    assert not torch.allclose(boxes.student, boxes.teacher, atol=1e-2)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_outputs_give_finite_losses(dtype):
    scene = Scene(('dog', 'cat'), ('cat', 'horse', 'dog'))
    for name in ('student_cls', 'teacher_cls', 'student_reg', 'teacher_reg'):
        setattr(
            scene, name, (getattr(scene, name) * 10).to(dtype).requires_grad_('student' in name)
        )
    scene.step.teacher_record._calls = {CLASSIFIER: [[scene.teacher_cls]]}
    for align, loss in (
        (RoIClassAlignment(confidence=True), KLDivergence(tau=4.0)),
        (RoIBoxAlignment(confidence=True), MSE()),
        (RoIBoxAlignment(coordinates='box', select='all'), GIoU()),
    ):
        pair = scene.pair(align)
        value = loss(pair.student, pair.teacher, pair.weight)
        value.backward()
        assert value.dtype == torch.float32 and value.isfinite()
    assert scene.student_cls.grad.isfinite().all() and scene.student_reg.grad.isfinite().all()


def test_what_cannot_be_paired_says_why():
    sigmoid = dict(bbox_head=dict(loss_cls=dict(use_sigmoid=True)))
    with pytest.raises(
        ConfigError, match='both RoI classifiers must use a softmax or both sigmoids'
    ):
        Scene(teacher=faster_rcnn(roi_head=sigmoid)).pair(RoIClassAlignment())
    with pytest.raises(ConfigError, match="needs the student's proposals.*align.select='teacher'"):
        Scene().pair(RoIBoxAlignment(select='labels'), proposals='teacher')
    with pytest.raises(ConfigError, match="align.select: must be one of .*got 'foreground'"):
        RoIClassAlignment(select='foreground')
    with pytest.raises(ConfigError, match="align.coordinates: must be one of .*got 'pixel'"):
        RoIBoxAlignment(coordinates='pixel')
    scene = Scene()
    scene.teacher_cls = scene.teacher_cls[:3]
    with pytest.raises(
        ConfigError, match=r'proposals: .* the same shape, got \(4, 0\) and \(3, 0\)'
    ):
        scene.pair(RoIClassAlignment())
    other = faster_rcnn()
    other['roi_head']['bbox_head']['bbox_coder'] = dict(type='TBLRBBoxCoder')
    with pytest.raises(
        ConfigError, match="got TBLRBBoxCoder .teacher.; set align.coordinates='box'"
    ):
        Scene(teacher=other).pair(RoIBoxAlignment())


@pytest.mark.parametrize('proposals', ['student', 'teacher'])
def test_both_heads_see_the_same_proposals(tmp_path, proposals):
    """With the student itself as teacher, in evaluation mode, every RoI loss must vanish."""
    config = faster_rcnn()
    checkpoint = save_teacher(tmp_path / 'teacher.pth', config)
    losses = {name: dict(entry) for name, entry in ROI_LOSSES.items()}
    losses['loss_kd_all'] = dict(
        losses['loss_kd_bbox'], align=dict(type='RoIBoxAlignment', select='all')
    )
    losses['loss_kd_giou'] = dict(
        losses['loss_kd_bbox'], type='GIoU', align=dict(type='RoIBoxAlignment', coordinates='box')
    )
    distiller = MODELS.build(
        dict(
            type='Distiller',
            student=config,
            teacher=dict(
                config=dict(model=config), checkpoint=str(checkpoint), proposals=proposals
            ),
            losses=losses,
            classes=CLASSES,
        )
    )
    distiller.load_state_dict(torch.load(checkpoint)['state_dict'])
    distiller.eval()  # no batch statistics, so both compute the same
    values = distiller(**distiller.data_preprocessor(batch(), True), mode='loss')
    for name in losses:
        assert values[name].item() == pytest.approx(0.0, abs=1e-4), name
    with torch.no_grad():
        distiller.roi_head.bbox_head.fc_cls.weight += 0.3 * torch.randn(4, 32)
        distiller.roi_head.bbox_head.fc_reg.weight += 0.3 * torch.randn(12, 32)
    values = distiller(**distiller.data_preprocessor(batch(), True), mode='loss')
    for name in losses:
        assert values[name].item() > 1e-3, name


def test_the_labelled_class_is_told_where_there_are_labels():
    scene = Scene(('dog', 'cat'), ('cat', 'horse', 'dog'))
    pair = scene.pair(RoIClassAlignment())
    assert pair.target.tolist() == [0, 2, 1, 1]  # of the shared classes, background last
    assert scene.pair(RoIClassAlignment(), proposals='teacher').target is None
    scene = Scene(('cat', 'unicorn', 'dog'), ('dog', 'cat'), exclude=['unicorn'])
    scene.labels[:] = torch.tensor([2, 1, 3, 0])
    pair = scene.pair(RoIClassAlignment())
    assert pair.target.tolist() == [1, 0, 2, 0] and pair.weight.tolist() == [1, 0, 1, 1]


# ------------------------------------------------------------------------------ boxes of the labels


def boxes_by_hand(rois, coder):
    """The labelled box that each proposal overlaps most, and its deltas, by the published formulas.

    Ren et al.: Faster R-CNN (arXiv 1506.01497), eq. 2, divided by the coder's deviations.
    """
    (truth,) = {sample.gt_instances.bboxes for sample in batch(images=1)['data_samples']}
    overlap = bbox_overlaps(rois[:, 1:], truth)
    boxes = truth[overlap.argmax(1)]
    proposals, wanted = (
        ((b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]) for b in (rois[:, 1:], boxes)
    )
    deltas = [(wanted[0] - proposals[0]) / proposals[1], (wanted[1] / proposals[1]).log()]
    means, stds = torch.tensor(coder.means), torch.tensor(coder.stds)
    return boxes, (torch.cat(deltas, 1) - means) / stds


@pytest.mark.parametrize('decoded', [False, True])
@pytest.mark.parametrize('coordinates', ['delta', 'box'])
@pytest.mark.parametrize('stage', [None, 0, 2])
def test_the_labelled_box_is_told_to_a_loss_that_needs_it(tmp_path, stage, coordinates, decoded):
    """Whether the student's own loss is one of deltas or, with reg_decoded_bbox, of boxes."""
    coder = dict(target_means=[0.1, 0.0, -0.1, 0.2])
    options = dict(reg_decoded_bbox=decoded, bbox_coder=coder)
    if stage is None:
        student, teacher, head = faster_rcnn(roi_head=dict(bbox_head=options)), faster_rcnn(), HEAD
    else:
        student, teacher, head = cascade_rcnn(head=options), cascade_rcnn(), f'{HEAD}.{stage}'
    # An untrained RPN finds little.
    student['train_cfg']['rpn_proposal'].update(nms_pre=1000, max_per_img=300)
    trainings = student['train_cfg']['rcnn']
    for training in [trainings] if stage is None else trainings:
        training['assigner'].update(pos_iou_thr=0.2, neg_iou_thr=0.2, min_pos_iou=0.2)
    checkpoint = save_teacher(tmp_path / 'teacher.pth', teacher)
    entry = dict(
        type='BoundedRegression',
        student=f'{head}.fc_reg',
        teacher=f'{head}.fc_reg',
        align=dict(type='RoIBoxAlignment', coordinates=coordinates),
    )
    distiller = MODELS.build(
        dict(
            type='Distiller',
            student=student,
            teacher=dict(config=dict(model=teacher), checkpoint=str(checkpoint)),
            losses=dict(loss_kd=entry),
            classes=CLASSES,
        )
    ).train()
    pairs, align = [], distiller.entries['loss_kd'].align
    loss = distiller.entries['loss_kd'].loss
    loss.register_forward_hook(lambda *given: pairs.append(given), with_kwargs=True)
    rois = Source(head.replace('bbox_head', 'bbox_roi_extractor'), capture='input', index=1)
    labels = Source(f'{head}.loss_cls', capture='input', index=1)
    own = Source(f'{head}.loss_bbox', capture='input', index=1)
    with Recorder(distiller.student, [rois, labels, own]) as seen:
        value = distiller(**distiller.data_preprocessor(batch(), True), mode='loss')['loss_kd']
    assert value.isfinite() and align.uses_student_proposals
    (_, (_, _, weight), given, _) = pairs[0]
    positive = weight > 0
    assert torch.equal(positive, seen[labels] < 3)
    proposals, target = seen[rois][positive], given['target'][positive]
    boxes, deltas = boxes_by_hand(proposals, distiller.get_submodule(head).bbox_coder)
    if coordinates == 'delta':
        assert torch.allclose(target, deltas, atol=1e-4)
    else:
        size = torch.tensor([[128.0, 96.0], [112.0, 96.0]]).repeat(1, 2)[proposals[:, 0].long()]
        assert torch.allclose(target, boxes / size, atol=1e-5)
    assert torch.allclose(seen[own], boxes if decoded else deltas, atol=1e-4)
    # Not only the boxes themselves, which are among the proposals.
    assert not torch.allclose(proposals[:, 1:], boxes, atol=1.0)
    assert given['target'].isfinite().all()


def test_boxes_of_the_labels_are_recorded_for_such_a_loss_only():
    scene, target = Scene(), Source(HEAD, method='get_targets', index=2)
    align = RoIBoxAlignment()
    assert scene.pair(align).target is None and target not in align.student_sources
    align.needs_target = True
    align.check(scene.student, scene.teacher, dict(proposals='student'))
    assert target in align.student_sources
    align = RoIBoxAlignment()
    align.needs_target = True
    assert scene.pair(align, proposals='teacher').target is None
    assert target not in align.student_sources
    align = RoIBoxAlignment(select='all')
    align.needs_target = True
    with pytest.raises(
        ConfigError, match="align.select: must be 'labels' for this loss.*got 'all'"
    ):
        scene.pair(align)
