"""The contracts of the distiller, on one model and a few steps."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.logging import MessageHub
from mmengine.runner.checkpoint import get_state_dict
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from tiny_models import (
    CLASSES,
    ROI_LOSSES,
    RPN_LOSSES,
    batch,
    faster_rcnn,
    feature_loss,
    save_teacher,
)
from torch import nn

from mmkd.errors import CheckpointError, ConfigError, MissingFileError, PathError

ALL_LOSSES = dict(**ROI_LOSSES, **RPN_LOSSES, loss_kd_neck=feature_loss())


@pytest.fixture
def make(tmp_path):
    """Builds distillers of a tiny student and a teacher with wider FPN."""
    model = faster_rcnn(channels=24)
    path = save_teacher(tmp_path / 'teacher.pth', model)

    def make(losses=ALL_LOSSES, student=None, teacher=None, **options):
        config = dict(config=dict(model=copy.deepcopy(model)), checkpoint=str(path))
        return MODELS.build(
            dict(
                type='Distiller',
                student=student or faster_rcnn(),
                teacher={**config, **(teacher or {})},
                losses=copy.deepcopy(losses),
                **{'classes': CLASSES, **options},
            )
        )

    return make


def step(model, seed=0):
    torch.manual_seed(seed)
    return model(**model.data_preprocessor(batch(), True), mode='loss')


def hooks_of(*models):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for x in models for m in x.modules()
    )


# ---------------------------------------------------------------------- it is the student


def test_names_are_those_of_the_plain_student(make):
    distiller, plain = make(), MODELS.build(faster_rcnn())
    assert list(distiller.state_dict()) == list(plain.state_dict())
    assert list(get_state_dict(distiller)) == list(plain.state_dict())
    own = [name for name, _ in distiller.named_parameters() if not name.startswith('connectors.')]
    assert own == [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in distiller.named_buffers()] == [
        name for name, _ in plain.named_buffers()
    ]
    assert distiller.with_roi_head is True
    with pytest.raises(AttributeError, match='no_such_thing'):
        distiller.no_such_thing  # noqa: B018


def test_what_it_writes_loads_strictly_into_the_plain_student_and_back(make):
    distiller, plain = make(), MODELS.build(faster_rcnn())
    plain.load_state_dict(distiller.state_dict(), strict=True)
    again = make()
    again.load_state_dict(plain.state_dict(), strict=True)
    mmengine_load(again, plain.state_dict(), strict=True)
    for name, value in again.state_dict().items():
        assert torch.equal(value, distiller.state_dict()[name]), name


def test_a_checkpoint_of_something_else_is_not_taken_for_the_student(make):
    with pytest.raises(RuntimeError, match='Missing key.*neck'):
        make().load_state_dict(MODELS.build(faster_rcnn()).backbone.state_dict(), strict=True)


def test_predictions_are_the_plain_students(make):
    distiller, plain = make().eval(), MODELS.build(faster_rcnn()).eval()
    plain.load_state_dict(distiller.state_dict())
    ours, theirs = (model.test_step(batch()) for model in (distiller, plain))
    for a, b in zip(ours, theirs, strict=True):
        assert len(a.pred_instances) and torch.equal(
            a.pred_instances.bboxes, b.pred_instances.bboxes
        )


def test_moving_and_casting_reach_the_student_and_its_own_parameters(make):
    distiller = make(losses={})
    distiller.student.register_parameter('level_embed', nn.Parameter(torch.zeros(2)))
    assert 'level_embed' in distiller.state_dict()
    distiller.to(torch.float64)
    kinds = {p.dtype for p in distiller.student.parameters()} | {
        p.dtype for p in distiller.parameters()
    }
    assert kinds == {torch.float64}


def test_training_mode_reaches_the_student_and_returns_self(make):
    distiller = make()
    assert distiller.eval() is distiller and not distiller.student.training
    assert distiller.train() is distiller and distiller.student.training
    assert distiller.roi_head.training and distiller.connectors.training


def test_a_mobilenet_whose_train_returns_none_does_not_matter(make):
    backbone = dict(type='MobileNetV2', widen_factor=0.25, out_indices=(1, 2, 4, 7))
    student = faster_rcnn(neck=dict(in_channels=[8, 8, 24, 1280]))
    student['backbone'] = backbone
    distiller = make(losses=ROI_LOSSES, student=student)
    assert distiller.train().eval() is distiller


# ---------------------------------------------------------------------- the teacher is invisible


def test_the_teacher_is_nowhere_to_be_seen(make):
    distiller = make()
    distiller.init_weights()
    hidden = {id(p) for p in distiller.teacher.detector.parameters()}
    hidden_modules = {id(m) for m in distiller.teacher.detector.modules()}
    assert not hidden & {id(p) for p in distiller.parameters()}
    assert not hidden_modules & {id(m) for m in distiller.modules()}
    assert 'teacher' not in ' '.join(distiller.state_dict())
    for mode in (True, False):
        distiller.train(mode).requires_grad_(True)
        detector = distiller.teacher.detector
        assert not any(m.training for m in detector.modules())
        assert not any(p.requires_grad for p in detector.parameters())


def test_a_copy_shares_the_teacher_and_has_its_own_student(make):
    distiller = make()
    distiller.init_weights()
    step(distiller)
    twin = copy.deepcopy(distiller)
    assert twin.teacher is distiller.teacher
    assert twin.student.backbone is twin.backbone and twin.backbone is not distiller.backbone
    assert twin.student._parameters is twin._parameters
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert any(p.any() for p in distiller.parameters())
    assert step(twin)['loss_kd_cls'] != step(distiller)['loss_kd_cls']


def test_the_teacher_learns_nothing_from_a_step(make):
    distiller = make()
    distiller.init_weights()
    before = {k: v.clone() for k, v in distiller.teacher.detector.state_dict().items()}
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    total, _ = distiller.parse_losses(step(distiller))
    total.backward()
    optimizer.step()
    assert all(p.grad is None for p in distiller.teacher.detector.parameters())
    assert all(
        torch.equal(v, before[k]) for k, v in distiller.teacher.detector.state_dict().items()
    )


def test_neither_teacher_nor_checkpoint_is_needed_to_predict(make):
    distiller = make(teacher=dict(config='no/such/config.py', checkpoint='no/such/file.pth'))
    distiller.eval()
    assert len(distiller.test_step(batch())) == 2
    assert distiller.teacher is None
    with pytest.raises(MissingFileError, match='no/such/config.py'):
        distiller.init_weights()


def test_a_teacher_that_does_not_fit_is_refused_when_training_starts(make, tmp_path):
    other = save_teacher(tmp_path / 'other.pth', faster_rcnn(channels=16))
    distiller = make(teacher=dict(checkpoint=str(other)))
    with pytest.raises(CheckpointError, match=r'with another shape: neck\.lateral_convs\.0'):
        distiller.init_weights()


# ---------------------------------------------------------------------- the step


def test_gradients_reach_student_and_connectors(make):
    distiller = make()
    distiller.init_weights()
    losses = step(distiller)
    assert {name for name in losses if 'kd' in name} == set(ALL_LOSSES)
    sum(losses[name] for name in ALL_LOSSES).backward()
    for name in (
        'backbone.conv1.weight',
        'neck.fpn_convs.0.conv.weight',
        'rpn_head.rpn_cls.weight',
    ):
        assert distiller.get_parameter(name).grad.any(), name
    for name in ('fc_cls', 'fc_reg', 'shared_fcs.0'):
        assert distiller.get_parameter(f'roi_head.bbox_head.{name}.weight').grad.any(), name
    assert distiller.get_parameter('connectors.loss_kd_neck.convs.0.weight').grad.any()


def test_the_students_own_losses_are_untouched(make):
    distiller, plain = make(), MODELS.build(faster_rcnn())
    distiller.init_weights()
    plain.load_state_dict(distiller.state_dict())
    ours, theirs = step(distiller.train()), step(plain.train())
    for name, value in theirs.items():
        value, own = (v if isinstance(v, list) else [v] for v in (value, ours[name]))
        assert all(torch.equal(a, b) for a, b in zip(value, own, strict=True)), name


@pytest.mark.parametrize('proposals', ['student', 'teacher'])
def test_nothing_outlives_the_step(make, proposals):
    distiller = make(teacher=dict(proposals=proposals))
    distiller.init_weights()
    kept = []

    def watch(module, args, output):
        kept.append(weakref.ref(output))

    handles = [
        model.roi_head.bbox_head.fc_cls.register_forward_hook(watch)
        for model in (distiller.student, distiller.teacher.detector)
    ]
    before = hooks_of(distiller, distiller.teacher.detector)
    names = list(distiller.state_dict()), [name for name, _ in distiller.named_buffers()]
    losses = step(distiller)
    assert names == (list(distiller.state_dict()), [name for name, _ in distiller.named_buffers()])
    assert hooks_of(distiller, distiller.teacher.detector) == before == len(handles)
    assert 'extract_feat' not in vars(distiller.student)
    del losses
    gc.collect()
    assert len(kept) >= 2 and not any(reference() is not None for reference in kept)


def test_nothing_outlives_a_step_that_fails(make):
    distiller = make()
    distiller.init_weights()
    distiller.prepare()
    data = distiller.data_preprocessor(batch(), True)
    del data['data_samples'][0].gt_instances.bboxes
    with pytest.raises(AttributeError, match='bboxes'):
        distiller(**data, mode='loss')
    assert hooks_of(distiller, distiller.teacher.detector) == 0
    for record in distiller._recorders.values():
        assert not record.student._calls
        assert not any(each.recorder._calls for each in record.passes)


def test_each_head_runs_once_and_labels_are_assigned_for_the_student_only(make):
    distiller = make()
    distiller.init_weights()
    student, teacher = distiller.student, distiller.teacher.detector
    counts = dict.fromkeys(('student', 'teacher', 'assigned'), 0)

    def count(key):
        def hook(*_):
            counts[key] += 1

        return hook

    student.roi_head.bbox_head.register_forward_hook(count('student'))
    teacher.roi_head.bbox_head.register_forward_hook(count('teacher'))
    for head in (teacher.roi_head.bbox_assigner, teacher.rpn_head.assigner):
        head.assign = lambda *args, **kwargs: pytest.fail('labels were assigned for the teacher')
    step(distiller)
    assert counts == dict(student=1, teacher=1, assigned=0)


# ---------------------------------------------------------------------- off is off


def test_without_losses_no_teacher_is_asked_for(make):
    distiller = make(losses={}, teacher=dict(checkpoint='no/such/file.pth'))
    distiller.init_weights()
    assert distiller.teacher is None and 'loss_cls' in step(distiller)
    assert MODELS.build(dict(type='Distiller', student=faster_rcnn())).entries == {}


def test_an_entry_set_to_none_is_off(make):
    distiller = make(losses=dict(ROI_LOSSES, loss_kd_bbox=None))
    distiller.init_weights()
    assert [name for name in step(distiller) if 'kd' in name] == ['loss_kd_cls']


def test_past_its_stop_the_step_is_the_plain_students_and_the_teacher_rests(make):
    losses = {
        name: dict(entry, schedule=dict(end=5, unit='iter')) for name, entry in ALL_LOSSES.items()
    }
    distiller = make(losses=losses)
    distiller.init_weights()
    ran = []
    distiller.teacher.detector.backbone.register_forward_hook(lambda *_: ran.append(1))
    hub = MessageHub.get_instance('training')
    hub.update_info('iter', 4)
    assert 'loss_kd_cls' in step(distiller) and len(ran) == 1
    hub.update_info('iter', 5)
    ours, theirs = step(distiller), step(distiller.student)
    assert ours.keys() == theirs.keys() and len(ran) == 1
    for (total, _), (own, _) in [(distiller.parse_losses(ours), distiller.parse_losses(theirs))]:
        assert torch.equal(total, own)


def test_past_its_stop_training_is_plain_mmdet_bit_for_bit(make):
    """Two distilled steps, then three more beside a plain student that goes on from there."""
    losses = {
        name: dict(entry, schedule=dict(end=2, unit='iter'), loss_weight=1e-3)
        for name, entry in ALL_LOSSES.items()
    }
    distiller, plain = make(losses=losses).train(), MODELS.build(faster_rcnn()).train()
    distiller.init_weights()
    hub = MessageHub.get_instance('training')

    def optimizer(model):
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def update(model, optimizer, now):
        hub.update_info('iter', now)
        total, _ = model.parse_losses(step(model, seed=now))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    ours, theirs = optimizer(distiller), optimizer(plain)
    for now in range(2):
        update(distiller, ours, now)
    plain.load_state_dict(distiller.state_dict())
    for a, b in zip(distiller.student.parameters(), plain.parameters(), strict=True):
        if 'momentum_buffer' in ours.state[a]:
            theirs.state[b]['momentum_buffer'] = ours.state[a]['momentum_buffer'].clone()
    for now in range(2, 5):
        update(distiller, ours, now)
        update(plain, theirs, now)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, distiller.state_dict()[name]), name


def test_only_active_losses_are_computed(make):
    losses = dict(
        ROI_LOSSES, loss_kd_neck=dict(feature_loss(), schedule=dict(begin=2, unit='iter'))
    )
    losses['loss_kd_cls'] = dict(losses['loss_kd_cls'], schedule=dict(end=2, unit='iter'))
    losses['loss_kd_bbox'] = dict(losses['loss_kd_bbox'], schedule=dict(end=2, unit='iter'))
    distiller = make(losses=losses)
    distiller.init_weights()
    heads = []
    distiller.teacher.detector.roi_head.bbox_head.register_forward_hook(lambda *_: heads.append(1))
    hub = MessageHub.get_instance('training')
    for now, expected in ((0, {'loss_kd_cls', 'loss_kd_bbox'}), (2, {'loss_kd_neck'})):
        hub.update_info('iter', now)
        assert {name for name in step(distiller) if 'kd' in name} == expected
    assert len(heads) == 1  # for features alone the teacher's heads rest


def test_the_schedule_scales_the_loss(make):
    hub = MessageHub.get_instance('training')
    hub.update_info('iter', 1)
    values = []
    for schedule in (None, dict(warmup=4, unit='iter')):
        distiller = make(losses=dict(loss_kd_neck=dict(feature_loss(16, 24), schedule=schedule)))
        torch.manual_seed(0)
        distiller.init_weights()
        distiller.connectors.load_state_dict(
            {k: torch.ones_like(v) for k, v in distiller.connectors.state_dict().items()}
        )
        values.append(step(distiller)['loss_kd_neck'].item())
    assert values[1] == pytest.approx(0.25 * values[0])


def test_building_connectors_and_teacher_leaves_the_random_numbers_alone(make):
    drawn = []
    for losses in ({}, ALL_LOSSES):
        torch.manual_seed(5)
        distiller = make(losses=losses)
        distiller.init_weights()
        drawn.append((torch.rand(1).item(), distiller.neck.fpn_convs[0].conv.weight.sum().item()))
    assert drawn[0] == drawn[1]


# ---------------------------------------------------------------------- every mismatch speaks


def entry(**changes):
    return {'loss_kd_cls': {**copy.deepcopy(ROI_LOSSES['loss_kd_cls']), **changes}}


@pytest.mark.parametrize(
    'losses, error, message',
    [
        (entry(student='roi_head.bbox_head.fc_clss'), PathError, r'losses\.loss_kd_cls: the student \(FasterRCNN\) has no module .*fc_clss.*near: roi_head.bbox_head.fc_cls'),
        (entry(teacher='bbox_head.fc_cls'), ConfigError, r"'bbox_head.fc_cls' cannot be recorded: mmkd runs only backbone, neck, rpn_head, roi_head"),
        (entry(teacher='roi_head.fc_cls'), PathError, r'losses\.loss_kd_cls: the teacher .*near: roi_head.bbox_head.fc_cls'),
        (entry(activation='sigmoid'), ConfigError, r"losses\.loss_kd_cls: activation must be 'softmax', .*got 'sigmoid'"),
        (dict(loss_kd_neck=feature_loss(out_channels=8)), ConfigError, r'losses\.loss_kd_neck: level 0: .*; channels differ: set out_channels=24 of its connector$'),
        (dict(loss_kd_neck=dict(feature_loss(), connector=None)), ConfigError, r'losses\.loss_kd_neck: level 0: .* got \(2, 16, 24, 32\) and \(2, 24, 24, 32\); .*in_channels=16, out_channels=24'),
        (entry(student='roi_head.bbox_head.loss_bbox', teacher='roi_head.bbox_head.loss_bbox'), (PathError, ConfigError), r'losses\.loss_kd_cls: '),
    ],
)  # fmt: skip
def test_mistakes_in_an_entry_are_blamed_on_it(make, losses, error, message):
    distiller = make(losses=losses)
    distiller.init_weights()
    with pytest.raises(error, match=message):
        step(distiller)


@pytest.mark.parametrize(
    'losses, error, message',
    [
        (dict(kd=ROI_LOSSES['loss_kd_cls']), ConfigError, "losses.kd: the name must contain 'loss'"),
        (entry(type='KLDivergense'), PathError, "losses.loss_kd_cls.type: 'KLDivergense' is not registered; near: KLDivergence"),
        (entry(temperature=3), ConfigError, "losses.loss_kd_cls: KLDivergence: .*'temperature'"),
        (entry(align=dict(type='RoIClassAlignment', choose='all')), ConfigError, "losses.loss_kd_cls.align: RoIClassAlignment: .*'choose'"),
        (entry(schedule=dict(stop=3)), ConfigError, "losses.loss_kd_cls.schedule: got an unexpected .*'stop'"),
        (dict(loss_kd=dict(type='MSE')), ConfigError, "losses.loss_kd.student: not given, and FeatureAlignment has no default; name .* 'neck'"),
        (entry(type='Shared2FCBBoxHead', tau=None), ConfigError, 'losses.loss_kd_cls: '),
    ],
)  # fmt: skip
def test_mistakes_are_found_when_the_model_is_built(make, losses, error, message):
    with pytest.raises(error, match=message):
        make(losses=losses)


def test_classes_are_checked_before_the_first_iteration(make):
    distiller = make(classes=('cat', 'dog', 'unicorn'))
    distiller.init_weights()
    with pytest.raises(ConfigError, match='no class for unicorn'):
        distiller.prepare()
    distiller = make(classes=('cat', 'dog'))
    with pytest.raises(ConfigError, match='student: num_classes must be 2, .*, got 3'):
        distiller.prepare()
    distiller = make(classes=None)
    with pytest.raises(ConfigError, match='set model.classes'):
        distiller.prepare()
    MessageHub.get_instance('training').update_info('dataset_meta', dict(classes=CLASSES))
    distiller.prepare()
    assert distiller.class_maps['teacher'].is_identity
    make(
        losses=dict(loss_kd_neck=feature_loss()), classes=None
    ).prepare()  # features have no classes


def test_a_name_the_student_uses_itself_is_refused(make):
    distiller = make(losses=dict(loss_cls=ROI_LOSSES['loss_kd_cls']))
    distiller.init_weights()
    with pytest.raises(
        ConfigError, match="losses.loss_cls: the student has its own loss 'loss_cls'"
    ):
        step(distiller)


def test_teacher_options_that_do_not_exist_are_named(make):
    with pytest.raises(ConfigError, match='has no option proposal'):
        make(teacher=dict(proposal='teacher')).init_weights()
    with pytest.raises(
        ConfigError, match="teacher: .*missing 1 required .* argument: 'checkpoint'"
    ):
        config = dict(type='Distiller', student=faster_rcnn(), losses=entry())
        MODELS.build(dict(config, teacher=dict(config='x.py'))).init_weights()
    with pytest.raises(ConfigError, match="teacher.proposals: must be .*, got 'both'"):
        make(teacher=dict(proposals='both')).init_weights()
    with pytest.raises(ConfigError, match='teacher: not given, but losses need one'):
        MODELS.build(dict(type='Distiller', student=faster_rcnn(), losses=entry()))
    with pytest.raises(
        ConfigError, match='model.loss: a Distiller has no such option; near: losses'
    ):
        make(loss=entry())
    with pytest.raises(ConfigError, match='class_map: .*synonym'):
        make(class_map=dict(synonym={})).prepare()


ROI = dict(student='roi_head.bbox_head.fc_cls', teacher='roi_head.bbox_head.fc_cls')
NECK = dict(student='neck', teacher='neck')


@pytest.mark.parametrize(
    'entry',
    [
        dict(NECK, type='PKD'),
        dict(NECK, type='CWD', tau=1.0),
        dict(
            NECK,
            type='AttentionTransfer',
            align=dict(type='FeatureAlignment', same_channels=False),
        ),
        dict(
            NECK,
            type='MSE',
            connector=dict(type='MaskedGenerationConnector', in_channels=16, out_channels=24),
        ),
        dict(
            NECK,
            type='FGD',
            connector=feature_loss()['connector'],
            align=dict(type='ForegroundFeatureAlignment'),
        ),
        dict(ROI, type='WeightedCrossEntropy', align=dict(type='RoIClassAlignment')),
        dict(ROI, type='DIST', align=dict(type='RoIClassAlignment')),
        dict(ROI, type='DKD', align=dict(type='RoIClassAlignment')),
        dict(ROI, type='RKDDistance', align=dict(type='RoIClassAlignment')),
        dict(
            type='CIoU',
            student='roi_head.bbox_head.fc_reg',
            teacher='roi_head.bbox_head.fc_reg',
            align=dict(type='RoIBoxAlignment', coordinates='box'),
        ),
    ],
    ids=lambda entry: f'{entry["type"]}-{(entry.get("connector") or {}).get("type", "")}',
)
def test_a_pair_learns_by_any_loss(make, entry):
    """One entry is all that changes; its gradient reaches the student's backbone."""
    entry = copy.deepcopy(entry)
    if entry['student'] == 'neck' and 'align' not in entry:
        entry.setdefault('connector', feature_loss()['connector'])
    distiller = make(losses=dict(loss_kd=entry)).train()
    loss = step(distiller)['loss_kd']
    distiller.zero_grad()
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert distiller.backbone.conv1.weight.grad.abs().sum() > 0


def test_both_sides_may_have_a_connector(make):
    context = dict(type='GlobalContextConnector', channels=24, levels=5)
    entry = dict(NECK, type='MSE', reduction='sum', connector=context, teacher_connector=context)
    student = faster_rcnn(channels=24)
    distiller = make(student=student, losses=dict(loss_kd=entry)).train()
    sides = [distiller.get_submodule(f'connectors.loss_kd{side}') for side in ('', '/teacher')]
    for side in sides:
        for transform in side.transform:
            torch.nn.init.normal_(transform[-1].weight, std=0.1)
    step(distiller)['loss_kd'].backward()
    for side in sides:
        assert all(p.grad is not None and p.grad.any() for p in side.transform.parameters())
    assert all('connectors' not in name for name in distiller.state_dict())
    assert {name.split('.')[0] for name in distiller.connector_state()} == {
        'loss_kd',
        'loss_kd/teacher',
    }


def test_connectors_may_follow_one_another(make):
    context = dict(type='GlobalContextConnector', channels=24)
    entry = dict(feature_loss(), connector=[feature_loss()['connector'], context])
    distiller = make(losses=dict(loss_kd=entry)).train()
    step(distiller)['loss_kd'].backward()
    names = {name.split('.')[1] for name in distiller.connector_state()}
    assert names == {'0', '1'}
    assert distiller.get_parameter('connectors.loss_kd.0.convs.0.weight').grad.any()
    wrong = dict(entry, connector=[context, dict(type='ConvConnektor')])
    with pytest.raises(
        PathError, match=r"losses.loss_kd.connector\[1\].type: 'ConvConnektor' is not"
    ):
        make(losses=dict(loss_kd=wrong))


def test_a_loss_that_needs_labels_says_which_alignment_has_them(make):
    losses = dict(loss_kd=dict(type='DKD', **feature_loss_sources()))
    with pytest.raises(
        ConfigError, match='losses.loss_kd.align: must provide the labelled class .* DKD.*RoIClass'
    ):
        step(make(losses=losses).train())


@pytest.mark.parametrize(
    ('loss', 'align', 'message'),
    [
        (
            'DKD',
            'RoIBoxAlignment',
            'labelled class .* RoIBoxAlignment does not .*RoIClassAlignment',
        ),
        (
            'BoundedRegression',
            'RoIClassAlignment',
            'labelled box .* use .*RoIBoxAlignment.*student',
        ),
        ('BoundedRegression', 'FeatureAlignment', 'labelled box .* use .*RoIBoxAlignment.*student'),
        ('FGD', 'RoIBoxAlignment', 'labelled foreground .* use .*ForegroundFeatureAlignment'),
    ],
)
def test_labels_of_another_kind_do_not_do(make, loss, align, message):
    layer = 'roi_head.bbox_head.' + ('fc_cls' if align == 'RoIClassAlignment' else 'fc_reg')
    entry = dict(type=loss, student=layer, teacher=layer, align=dict(type=align))
    with pytest.raises(
        ConfigError, match=f'losses.loss_kd.align: must provide the (?=.*for {loss},){message}'
    ):
        make(losses=dict(loss_kd=entry)).prepare()


@pytest.mark.parametrize('loss', ['DKD', 'BoundedRegression'])
def test_the_teachers_proposals_have_no_labels(make, loss):
    layer, align = ('fc_cls', 'Class') if loss == 'DKD' else ('fc_reg', 'Box')
    layer = f'roi_head.bbox_head.{layer}'
    entry = dict(type=loss, student=layer, teacher=layer, align=dict(type=f'RoI{align}Alignment'))
    distiller = make(losses=dict(loss_kd=entry), teacher=dict(proposals='teacher'))
    with pytest.raises(
        ConfigError,
        match=f"losses.loss_kd.align: must provide .* for {loss}, .* student's proposals",
    ):
        step(distiller.train())


def test_a_loss_of_ones_own_must_say_which_labels_it_needs(make):
    class Own(nn.Module):
        needs_target = True

    with MODELS.switch_scope_and_registry(None) as registry:
        registry.register_module(name='Own', module=Own)
        try:
            losses = dict(loss_kd=dict(type='Own', student='neck', teacher='neck'))
            with pytest.raises(
                ConfigError, match="loss_kd: Own.needs_target must be one of .'class'.*got True"
            ):
                make(losses=losses)
        finally:
            registry.module_dict.pop('Own')


def feature_loss_sources():
    return {key: value for key, value in feature_loss().items() if key != 'type'}


@pytest.mark.parametrize('changes', [dict(frozen_stages=4), dict(frozen_stages=1, with_cp=True)])
def test_an_output_without_gradient_is_refused(make, changes):
    """A frozen stage, and a module whose output activation checkpointing computes without gradients."""
    path = 'backbone.layer1' if changes == dict(frozen_stages=4) else 'backbone.layer3.0.conv1'
    losses = dict(loss_kd=dict(type='MSE', student=path, teacher=path))
    distiller = make(losses, student=faster_rcnn(backbone=changes))
    distiller.train()
    with pytest.raises(ConfigError, match=r'losses\.loss_kd\.student: .*has no gradient'):
        step(distiller)
