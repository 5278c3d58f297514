"""Box heads of student and teacher on the same proposals: single ones, cascades, beside masks."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pytest
import torch
from mmdet.registry import MODELS
from tiny_models import (
    CLASSES,
    ROI_LOSSES,
    batch,
    cascade_rcnn,
    faster_rcnn,
    mask_branch,
    mask_rcnn,
    save_teacher,
)

from mmkd.errors import ConfigError
from mmkd.families import family_of
from mmkd.recorder import Recorder, Source

EXTRACTOR = 'roi_head.bbox_roi_extractor'
HEAD = 'roi_head.bbox_head'
# Single heads by None, cascades by the stage, student's and teacher's.
PAIRS = [(0, 0), (1, 1), (2, 2), (None, 0), (None, 2), (0, None), (None, None)]


def at(path, stage):
    return path if stage is None else f'{path}.{stage}'


def rois_of(stage):
    return Source(at(EXTRACTOR, stage), capture='input', index=1)


def losses_of(*pairs, **changes):
    """A loss of class scores and one of boxes for each pair of stages, student's and teacher's."""
    losses = {}
    for ours, theirs in pairs:
        for name, entry in ROI_LOSSES.items():
            layer = entry['student'].split('.')[-1]
            losses[f'{name}_{ours}_{theirs}'] = dict(
                entry,
                student=f'{at(HEAD, ours)}.{layer}',
                teacher=f'{at(HEAD, theirs)}.{layer}',
                **changes,
            )
    return losses


def detector(stage, **options):
    return faster_rcnn(**options) if stage is None else cascade_rcnn(**options)


@pytest.fixture
def distil(tmp_path):
    def distil(student, teacher, losses, **options):
        checkpoint = save_teacher(tmp_path / 'teacher.pth', teacher)
        distiller = MODELS.build(
            dict(
                type='Distiller',
                student=student,
                teacher=dict(config=dict(model=teacher), checkpoint=str(checkpoint), **options),
                losses=copy.deepcopy(losses),
                classes=CLASSES,
            )
        )
        distiller.init_weights()
        return distiller

    return distil


def step(distiller, **options):
    return distiller(**distiller.data_preprocessor(batch(**options), True), mode='loss')


def watch(distiller, ours, theirs):
    """One step; what the student and the teacher computed in it."""
    recorders = Recorder(distiller.student, ours), distiller.teacher.recorder(theirs)
    with ExitStack() as stack:
        for recorder in recorders:
            stack.enter_context(recorder)
        losses = step(distiller)
    return *recorders, losses


# ------------------------------------------------------------------------------ who evaluates what


@pytest.mark.parametrize(('ours', 'theirs'), PAIRS)
def test_the_teachers_head_evaluates_what_the_students_did(distil, ours, theirs):
    distiller = distil(detector(ours), detector(theirs, channels=24), losses_of((ours, theirs)))
    teacher = distiller.teacher.detector
    layers = [Source(f'{at(HEAD, theirs)}.{layer}') for layer in ('fc_cls', 'fc_reg')]
    student, seen, losses = watch(distiller.train(), [rois_of(ours)], layers)
    inputs = distiller.data_preprocessor(batch(), True)['inputs']
    with torch.no_grad():
        features = teacher.extract_feat(inputs)[:4]
        pooled = teacher.get_submodule(at(EXTRACTOR, theirs))(features, student[rois_of(ours)])
        by_hand = teacher.get_submodule(at(HEAD, theirs))(pooled)
    for source, value in zip(layers, by_hand, strict=True):
        assert len(value) == 32 and torch.allclose(seen[source], value, atol=1e-5)
    assert all(losses[name].isfinite() and losses[name] > 0 for name in distiller.entries)


@pytest.mark.parametrize('proposals', ['student', 'teacher'])
def test_the_student_itself_as_teacher_has_nothing_to_teach_it(distil, proposals):
    config, pairs = cascade_rcnn(), [(0, 0), (1, 1), (2, 2)]
    losses = losses_of(*pairs)
    for stage, _ in pairs:
        losses[f'loss_giou_{stage}'] = dict(
            losses[f'loss_kd_bbox_{stage}_{stage}'],
            type='GIoU',
            align=dict(type='RoIBoxAlignment', coordinates='box'),
        )
    distiller = distil(config, config, losses, proposals=proposals)
    distiller.load_state_dict(distiller.teacher.detector.state_dict())
    values = step(distiller.eval())  # no batch statistics, so both compute the same
    for name in losses:
        assert values[name].item() == pytest.approx(0.0, abs=1e-4), name
    with torch.no_grad():
        for layer in (
            distiller.roi_head.bbox_head[1].fc_cls,
            distiller.roi_head.bbox_head[1].fc_reg,
        ):
            layer.weight += 0.3 * torch.randn_like(layer.weight)
    values = step(distiller)
    for name in losses:
        assert (values[name].item() > 1e-3) == ('_1' in name), name


@pytest.mark.parametrize(('ours', 'theirs'), [*PAIRS, (2, 0), (1, None)])
def test_the_teachers_proposals_suit_any_two_heads(distil, ours, theirs):
    distiller = distil(
        detector(ours), detector(theirs), losses_of((ours, theirs)), proposals='teacher'
    )
    student, teacher, losses = watch(distiller.train(), [rois_of(ours)], [rois_of(theirs)])
    seen, shared = student[rois_of(ours)], teacher[rois_of(theirs)]
    first, second = seen  # in its own pass and in the joint one
    assert torch.equal(second, shared) and len(first) == 32 and not torch.equal(first, second)
    assert all(losses[name].isfinite() and losses[name] > 0 for name in distiller.entries)


def step_and_gradients(distiller, **options):
    """Losses, and gradients by parameter, of a step without its random choices."""
    torch.manual_seed(0)  # of what mmdet samples
    distiller.zero_grad()
    losses = step(distiller, **options)
    distiller.parse_losses(losses)[0].backward()
    return losses, {name: each.grad for name, each in distiller.named_parameters()}


def calls_of_box_head(distiller, **options):
    rois = rois_of(None)
    with Recorder(distiller.student, [rois]) as recorder:
        found = step_and_gradients(distiller, **options)
    rois = recorder[rois]
    return len(rois) if isinstance(rois, list) else 1, *found


def test_statistics_of_a_batch_remain_those_of_the_students_own_proposals(distil):
    config, head = faster_rcnn(), faster_rcnn()['roi_head']['bbox_head']
    kept = {key: head[key] for key in ('num_classes', 'bbox_coder', 'loss_cls', 'loss_bbox')}
    config['roi_head']['bbox_head'] = dict(
        type='Shared4Conv1FCBBoxHead',
        in_channels=16,
        conv_out_channels=8,
        fc_out_channels=32,
        norm_cfg=dict(type='BN'),
        **kept,
    )
    distiller = distil(config, faster_rcnn(), losses_of((None, None)), proposals='teacher')
    plain = copy.deepcopy(distiller.student).train()
    calls, losses, _ = calls_of_box_head(distiller.train())
    assert calls == 2
    torch.manual_seed(0)
    for name, value in step(plain).items():
        if isinstance(value, list):
            assert all(map(torch.equal, value, losses[name])), name
        else:
            assert torch.equal(value, losses[name]), name


def test_another_teacher_still_sees_the_students_own_proposals_alone(tmp_path):
    """One teacher's proposals are not put before the other, which evaluates the student's."""
    checkpoint = save_teacher(tmp_path / 'teacher.pth', faster_rcnn())
    config = dict(config=dict(model=faster_rcnn()), checkpoint=str(checkpoint))
    both = losses_of((None, None))
    entries = {
        **both,
        **{f'{n}_own': dict(e, teacher_name='own') for n, e in both.items()},
    }
    distiller = MODELS.build(
        dict(
            type='Distiller',
            student=faster_rcnn(),
            teacher=dict(config, proposals='teacher', num_proposals=5),
            teachers=dict(own=config),
            losses=entries,
            classes=CLASSES,
        )
    )
    distiller.init_weights()
    calls, losses, _ = calls_of_box_head(distiller.train())
    assert calls == 2
    passes = {each.name: each for each in distiller._recorders_of(tuple(entries)).passes}
    seen = {}
    for name, each in passes.items():
        inner = each.run_teacher

        def watched(*args, inner=inner, name=name, each=each):
            inner(*args)
            seen[name] = len(each.shared['rois'][HEAD])

        each.run_teacher = watched
    step(distiller)
    assert seen == dict(teacher=10, own=32)


@pytest.mark.parametrize('proposals', ['student', 'teacher'])
def test_only_the_stages_that_losses_read_run(distil, proposals):
    distiller = distil(cascade_rcnn(), cascade_rcnn(), losses_of((1, 1)), proposals=proposals)
    heads = [Source(f'{HEAD}.{stage}', index=0) for stage in range(3)]
    student, teacher, _ = watch(distiller.train(), heads, heads)
    assert [head in teacher for head in heads] == [False, True, False]
    runs = [len(student[head]) if isinstance(student[head], list) else 1 for head in heads]
    assert runs == ([1, 1, 1] if proposals == 'student' else [1, 2, 1])


def test_gradients_reach_the_stage_that_is_compared(distil):
    distiller = distil(cascade_rcnn(), cascade_rcnn(), losses_of((1, 1))).train()
    losses = step(distiller)
    sum(losses[name] for name in distiller.entries).backward()
    reached = [head.fc_cls.weight.grad is not None for head in distiller.roi_head.bbox_head]
    assert reached == [False, True, False]
    for module in (distiller.roi_head.bbox_head[1].fc_reg, distiller.backbone.conv1):
        assert module.weight.grad.any()
    assert all(p.grad is None for p in distiller.teacher.detector.parameters())


def test_stages_have_the_labels_of_their_own_proposals(distil):
    """DKD reads them; each stage draws anew."""
    losses = {
        name: dict(entry, type='DKD', tau=1.0)
        for name, entry in losses_of((0, 0), (2, 2)).items()
        if 'cls' in name
    }
    distiller = distil(cascade_rcnn(), cascade_rcnn(), losses).train()
    values = step(distiller)
    assert all(values[name].isfinite() for name in losses)
    labels = [distiller.entries[name].align.labels.module for name in losses]
    assert labels == [f'{HEAD}.0.loss_cls', f'{HEAD}.2.loss_cls']


# ------------------------------------------------------------------------------ masks


@pytest.mark.parametrize('student', [mask_rcnn(), faster_rcnn()], ids=['masks', 'boxes'])
@pytest.mark.parametrize('proposals', ['student', 'teacher'])
def test_the_boxes_of_a_mask_rcnn_teach_and_learn(distil, student, proposals):
    distiller = distil(
        student, mask_rcnn(channels=24), losses_of((None, None)), proposals=proposals
    ).train()
    distiller.teacher.detector.roi_head.mask_head.register_forward_hook(
        lambda *_: pytest.fail("the teacher's mask head ran")
    )
    losses = step(distiller, masks=True)
    assert ('loss_mask' in losses) == (student['type'] == 'MaskRCNN')
    assert all(losses[name].isfinite() and losses[name] > 0 for name in distiller.entries)
    sum(losses[name] for name in distiller.entries).backward()
    assert distiller.roi_head.bbox_head.fc_cls.weight.grad.any()
    if student['type'] == 'MaskRCNN':
        assert all(p.grad is None for p in distiller.roi_head.mask_head.parameters())


@pytest.mark.parametrize('own_extractor', [True, False])
def test_a_cascade_with_masks_is_compared_on_the_proposals_of_its_boxes(distil, own_extractor):
    """Where both branches share an extractor, it is called for masks too, on fewer proposals."""
    masks = mask_branch(own_extractor=own_extractor)
    student = cascade_rcnn(roi_head=masks, data_preprocessor=dict(pad_mask=True))
    size = 28 if own_extractor else 14
    for training in student['train_cfg']['rcnn']:
        training['mask_size'] = size
    distiller = distil(student, cascade_rcnn(), losses_of((1, 1))).train()
    losses = step(distiller, masks=True)
    assert 's1.loss_mask' in losses
    assert all(losses[name].isfinite() and losses[name] > 0 for name in distiller.entries)


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ('ours', 'theirs', 'paths', 'message'),
    [
        (0, 0, (f'{HEAD}.fc_cls', f'{HEAD}.0.fc_cls'), r"fc_cls': must name one of the stages 0 to 2 of the CascadeRoIHead, .*roi_head.bbox_head.0.fc_cls"),
        (0, 0, (f'{HEAD}.0.fc_cls', f'{HEAD}.*.fc_cls'), r"bbox_head.\*.fc_cls': must name one of the stages"),
        (0, 0, (f'{HEAD}.3.fc_cls', f'{HEAD}.2.fc_cls'), r"bbox_head.3.fc_cls': must name one of the stages 0 to 2"),
        (None, 0, (f'{HEAD}.0.fc_cls', f'{HEAD}.0.fc_cls'), r"StandardRoIHead has one box head and no stages; write 'roi_head.bbox_head.fc_cls'"),
        (0, None, (f'{HEAD}.0.fc_cls', f'{HEAD}.0.fc_cls'), r"StandardRoIHead has one box head and no stages"),
        (0, 0, (f'{HEAD}.0.fc_cls', f'{HEAD}.2.fc_cls'), r"stage 0 of the student and stage 2 of the teacher evaluate different proposals; .*roi_head.bbox_head.0 for the teacher.*teacher.proposals='teacher'"),
        (0, None, (f'{HEAD}.1.fc_cls', f'{HEAD}.fc_cls'), r"refined proposals of stage 1, .*name stage 0 of the student"),
    ],
)  # fmt: skip
def test_heads_that_cannot_be_paired_say_what_to_write(distil, ours, theirs, paths, message):
    entry = dict(ROI_LOSSES['loss_kd_cls'], student=paths[0], teacher=paths[1])
    with pytest.raises(ConfigError, match=rf'losses.loss_kd[.:].*{message}'):
        step(distil(detector(ours), detector(theirs), dict(loss_kd=entry)))


def test_stages_must_agree_whatever_is_compared(distil):
    """As many proposals are drawn in each stage: the shapes would not tell."""
    layers = [dict(module=f'{HEAD}.{stage}.shared_fcs.1', copy=True) for stage in range(2)]
    entry = dict(type='MSE', student=layers[0], teacher=layers[1])
    with pytest.raises(
        ConfigError, match='losses.loss_kd.teacher: stage 0 of the student and stage 1'
    ):
        step(distil(cascade_rcnn(), cascade_rcnn(), dict(loss_kd=entry)))
    entry['teacher'] = layers[0]
    assert step(distil(cascade_rcnn(), cascade_rcnn(), dict(loss_kd=entry)))['loss_kd'] > 0


def test_masks_are_not_run():
    family = family_of(MODELS.build(mask_rcnn()))
    with pytest.raises(ConfigError, match='mask_head.* mmkd runs only the box branch'):
        family.part_of(Source('roi_head.mask_head.conv_logits'))


def hybrid(**branches):
    """A hybrid task cascade: box heads as a cascade's, which may read a semantic branch besides."""
    config = cascade_rcnn()
    config['type'] = 'HybridTaskCascade'
    config['roi_head'].update(
        type='HybridTaskCascadeRoIHead',
        **mask_branch(),
        **branches,
    )
    config['roi_head']['mask_head'].update(type='HTCMaskHead', conv_out_channels=16)
    config['data_preprocessor']['pad_mask'] = True
    for training in config['train_cfg']['rcnn']:
        training['mask_size'] = 28
    return config


SEMANTIC = dict(
    semantic_roi_extractor=dict(
        type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
        out_channels=16,
        featmap_strides=[8],
    ),
    semantic_head=dict(
        type='FusedSemanticHead',
        num_ins=5,
        fusion_level=1,
        num_convs=1,
        in_channels=16,
        conv_out_channels=16,
        num_classes=3,
    ),
)


def test_box_heads_that_read_more_than_boxes_are_refused(distil):
    message = (
        'losses.loss_kd_.*box heads of a HybridTaskCascadeRoIHead need more inputs than proposals'
    )
    with pytest.raises(ConfigError, match=message):
        step(distil(cascade_rcnn(), hybrid(**SEMANTIC), losses_of((0, 0))))
    # A student runs them itself, but not once more on the teacher's proposals.
    distiller = distil(hybrid(**SEMANTIC), cascade_rcnn(), losses_of((0, 0)), proposals='teacher')
    with pytest.raises(ConfigError, match=message):
        distiller.prepare()


@pytest.mark.parametrize('proposals', ['student', 'teacher'])
def test_a_hybrid_task_cascade_without_them_is_a_cascade(distil, proposals):
    losses = losses_of((0, 0), (2, 2))
    distiller = distil(hybrid(), hybrid(), losses, proposals=proposals).train()
    values = step(distiller, masks=True)
    assert all(values[name].isfinite() and values[name] > 0 for name in losses)


def test_a_student_without_proposals_is_refused(distil):
    """Features of the teacher's RoI head have nothing to be computed on."""
    student = dict(
        type='RetinaNet',
        **{key: faster_rcnn()[key] for key in ('data_preprocessor', 'backbone', 'neck')},
        bbox_head=dict(type='RetinaHead', num_classes=3, in_channels=16, feat_channels=16),
    )
    entry = dict(type='MSE', student='neck', teacher=EXTRACTOR)
    with pytest.raises(
        ConfigError, match='losses.loss_kd.teacher: .*proposals, but a RetinaNet has none'
    ):
        distil(student, faster_rcnn(), dict(loss_kd=entry)).prepare()
