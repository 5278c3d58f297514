"""DETR and its relatives as teacher and student."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hub import get_config
from tiny_models import CLASSES, batch, faster_rcnn, save_teacher
from tiny_transformers import KINDS, transformer
from torch import nn

from mmkd.errors import CheckpointError, ConfigError
from mmkd.families import Family, Transformer, family_of
from mmkd.recorder import Recorder, Source

EMBEDDING = dict(module='bbox_head', capture='input', index=0)


def entry(align='HungarianQueryAlignment', of='class', activation='sigmoid', **changes):
    loss = {
        'class': dict(type='KLDivergence', activation=activation),
        'box': dict(type='L1'),
        'embedding': dict(type='Contrastive'),
    }[of]
    source = EMBEDDING if of == 'embedding' else 'bbox_head'
    return dict(loss, student=source, teacher=source, align=dict(type=align, of=of), **changes)


def build(student, teacher, losses, tmp_path, **options):
    checkpoint = save_teacher(tmp_path / 'teacher.pth', teacher)
    distiller = MODELS.build(
        dict(
            type='Distiller',
            student=student,
            teacher=dict(
                config=dict(model=teacher),
                checkpoint=str(checkpoint),
                **options.pop('teacher_options', {}),
            ),
            losses=losses,
            **{'classes': CLASSES, **options},
        )
    )
    distiller.train().init_weights()
    return distiller


def step(model, **options):
    torch.manual_seed(0)
    return model(**model.data_preprocessor(batch(**options), True), mode='loss')


@pytest.mark.parametrize('align', ['HungarianQueryAlignment', 'SharedQueryAlignment'])
@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_distils_a_step(kind, align, tmp_path):
    """A gradient in the student's every part, none in the teacher's, from distillation alone."""
    activation = 'softmax' if kind == 'DETR' else 'sigmoid'
    losses = dict(
        loss_kd_cls=entry(align, activation=activation),
        loss_kd_bbox=entry(align, 'box'),
        loss_kd_query=entry(align, 'embedding'),
        loss_kd_memory=dict(
            type='MSE',
            student='encoder',
            teacher='encoder',
            align=dict(type='EncoderMemoryAlignment'),
        ),
    )
    distiller = build(transformer(kind), transformer(kind), losses, tmp_path)
    result = step(distiller)
    assert all(result[name].isfinite() and result[name] > 0 for name in losses)
    distiller.zero_grad()
    sum(result[name] for name in losses).backward()
    for part in ('backbone', 'neck', 'encoder', 'decoder', 'bbox_head'):
        grads = [p.grad for p in getattr(distiller, part).parameters() if p.grad is not None]
        assert any(grad.abs().sum() > 0 for grad in grads), part
    teacher = distiller.teacher.detector
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())  # no dropout either


@pytest.mark.parametrize('kind', ['DETR', 'DINO'])
def test_the_students_own_losses_are_untouched(kind, tmp_path):
    """Also with a second pass of its decoder on shared queries."""
    activation = 'softmax' if kind == 'DETR' else 'sigmoid'
    losses = dict(
        loss_kd_own=entry(activation=activation),
        loss_kd_shared=entry('SharedQueryAlignment', activation=activation),
    )
    distiller = build(transformer(kind), transformer(kind), losses, tmp_path)
    plain = MODELS.build(transformer(kind)).train()
    plain.load_state_dict(distiller.state_dict())
    ours, theirs = step(distiller), step(plain)
    assert set(ours) == set(theirs) | set(losses)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize('kind', KINDS)
def test_without_losses_training_is_plain_mmdet_bit_for_bit(kind):
    """Three steps of AdamW, dropout and denoising included."""
    torch.manual_seed(3)
    plain = MODELS.build(transformer(kind)).train()
    plain.init_weights()
    distiller = MODELS.build(dict(type='Distiller', student=transformer(kind))).train()
    distiller.load_state_dict(plain.state_dict())
    for model in (plain, distiller):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for seed in range(3):
            torch.manual_seed(seed)
            losses = model(**model.data_preprocessor(batch(seed=seed), True), mode='loss')
            total, _ = model.parse_losses(losses)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, distiller.state_dict()[name]), name


def test_denoising_queries_are_left_out(tmp_path):
    """A DINO student answers more queries than it has while it trains; the extra ones come first."""
    distiller = build(transformer('DINO'), transformer('DINO'), dict(loss_kd=entry()), tmp_path)
    head = Source('bbox_head')
    with Recorder(distiller.student, [head]) as seen:
        loss = step(distiller)['loss_kd']
    scores, boxes = seen[head]
    assert scores.shape[2] > 8
    gradient = torch.autograd.grad(loss, [scores], retain_graph=True)[0]
    assert gradient[:, :, :-8].abs().sum() == 0 < gradient[:, :, -8:].abs().sum()


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [('DETR', 'DeformableDETR'), ('DINO', 'DETR'), ('DABDETR', 'DINO'), ('DETR', 'DINO')],
)
def test_kinds_teach_each_other_by_matching_and_memory(student, teacher, tmp_path):
    """Softmax and sigmoid, unequal numbers of queries, layers and channels, one level and four."""
    student = transformer(student, queries=6, layers=(1, 3))
    teacher = transformer(teacher, queries=9, layers=(2, 2))
    widths = (model.positional_encoding.num_feats * 2 for model in (student, teacher))
    losses = dict(
        loss_kd_cls=entry(),
        loss_kd_bbox=entry(of='box'),
        loss_kd_memory=dict(
            type='MSE',
            student='encoder',
            teacher='encoder',
            connector=dict(
                zip(
                    ('type', 'in_channels', 'out_channels'),
                    ('LinearConnector', *widths),
                    strict=True,
                )
            ),
            align=dict(type='EncoderMemoryAlignment'),
        ),
    )
    distiller = build(student, teacher, losses, tmp_path)
    result = step(distiller, size=(128, 160))
    assert all(result[name].isfinite() and result[name] > 0 for name in losses)


def test_a_detr_teaches_a_faster_rcnn_through_features(tmp_path):
    """Its neck and its encoder's memory, both at stride 32, reach the student's level of that stride."""
    align = dict(type='EncoderMemoryAlignment')
    connector = dict(type='ConvConnector', in_channels=16, out_channels=32)
    losses = dict(
        loss_kd_neck=dict(type='MSE', student='neck', teacher='neck', connector=connector),
        loss_kd_memory=dict(
            type='MSE', student='neck', teacher='encoder', connector=connector, align=align
        ),
    )
    distiller = build(faster_rcnn(), transformer('DETR'), losses, tmp_path)
    result = step(distiller, size=(128, 160))
    assert all(result[name].isfinite() and result[name] > 0 for name in losses)


def test_a_faster_rcnn_teaches_a_detr_through_features(tmp_path):
    connector = dict(type='ConvConnector', in_channels=32, out_channels=16)
    losses = dict(
        loss_kd_neck=dict(type='MSE', student='neck', teacher='neck', connector=connector)
    )
    distiller = build(transformer('DETR'), faster_rcnn(), losses, tmp_path)
    assert step(distiller, size=(128, 160))['loss_kd_neck'] > 0


def test_queries_of_other_detectors_are_refused(tmp_path):
    for student, teacher, who in (
        (faster_rcnn(), transformer(), 'the student, a FasterRCNN'),
        (transformer(), faster_rcnn(), 'the teacher, a FasterRCNN'),
    ):
        losses = dict(loss_kd=dict(entry(), student='neck', teacher='neck'))
        with pytest.raises(ConfigError, match=f'{who}, has none that mmkd can run.*features'):
            step(build(student, teacher, losses, tmp_path))


def test_queries_of_another_form_cannot_be_shared(tmp_path):
    losses = dict(loss_kd=entry('SharedQueryAlignment'))
    for student, teacher, message in (
        (transformer('DETR'), transformer('DINO'), 'DETR queries of 32.*DINO queries of 256'),
        (transformer('DETR', width=64), transformer('DETR'), 'queries of 64.*queries of 32'),
    ):
        with pytest.raises(ConfigError, match=f'{message}.*HungarianQueryAlignment'):
            step(build(student, teacher, losses, tmp_path))


def test_anchors_can_be_shared_by_models_of_unequal_width(tmp_path):
    losses = dict(loss_kd=entry('SharedQueryAlignment'))
    student = transformer('DABDETR', width=64, decoder=dict(layer_cfg=dict()))
    assert step(build(student, transformer('DABDETR'), losses, tmp_path))['loss_kd'] > 0


class Calls:
    """Counts the calls of some modules."""

    def __init__(self, model, *names):
        self.counts = dict.fromkeys(names, 0)
        for name in names:
            model.get_submodule(name).register_forward_hook(self.counter(name))

    def counter(self, name):
        def hook(*_):
            self.counts[name] += 1

        return hook


@pytest.mark.parametrize(
    ('losses', 'counts'),
    [
        (dict(student='neck', teacher='neck', type='MSE'), (1, 0, 0, 0)),
        (
            dict(
                student='encoder',
                teacher='encoder',
                type='MSE',
                align=dict(type='EncoderMemoryAlignment'),
            ),
            (1, 1, 0, 0),
        ),
        (
            dict(
                entry(activation='softmax'), student='bbox_head.fc_cls', teacher='bbox_head.fc_cls'
            ),
            (1, 1, 1, 1),
        ),
        (entry('SharedQueryAlignment', activation='softmax'), (1, 1, 1, 1)),
    ],
)
def test_the_teacher_runs_as_far_as_the_losses_read(losses, counts, tmp_path):
    distiller = build(transformer(), transformer(), dict(loss_kd=losses), tmp_path)
    names = ('backbone', 'encoder', 'decoder', 'bbox_head')
    calls = Calls(distiller.teacher.detector, *names)
    step(distiller)
    assert tuple(calls.counts[name] for name in names) == counts


def test_own_and_shared_queries_can_be_distilled_together(tmp_path):
    """Two passes of the decoders, of which each loss reads its own."""
    losses = dict(
        loss_kd_own=entry('IndexQueryAlignment', activation='softmax'),
        loss_kd_shared=entry('SharedQueryAlignment', activation='softmax'),
    )
    distiller = build(
        transformer(), transformer(), losses, tmp_path, teacher_options=dict(random_queries=5)
    )
    calls = Calls(distiller.teacher.detector, 'backbone', 'encoder', 'decoder')
    both = step(distiller)
    assert calls.counts == dict(backbone=1, encoder=1, decoder=2)
    del losses['loss_kd_shared']
    alone = step(build(transformer(), transformer(), losses, tmp_path))
    assert both['loss_kd_own'] > 0 and alone['loss_kd_own'] > 0
    assert both['loss_kd_own'] != both['loss_kd_shared']


@pytest.mark.parametrize('kind', KINDS)
def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_shared_queries(kind, tmp_path):
    """In evaluation mode, as dropout and denoising would differ."""
    losses = dict(
        loss_kd_cls=entry(
            'SharedQueryAlignment', activation='softmax' if kind == 'DETR' else 'sigmoid'
        ),
        loss_kd_bbox=entry('SharedQueryAlignment', 'box'),
    )
    distiller = build(transformer(kind), transformer(kind), losses, tmp_path)
    distiller.load_state_dict(distiller.teacher.detector.state_dict())
    for module in distiller.student.modules():
        if isinstance(module, (nn.Dropout, nn.BatchNorm2d, nn.MultiheadAttention)):
            module.eval()
    result = step(distiller)
    assert all(float(result[name].detach()) < 1e-4 for name in losses)


@pytest.mark.parametrize('kind', KINDS)
def test_shared_queries_are_the_teachers_and_random_ones_anew_each_step(kind, tmp_path):
    checkpoint = save_teacher(tmp_path / 'teacher.pth', transformer(kind))
    detector = MODELS.build(transformer(kind)).eval()
    detector.load_state_dict(torch.load(checkpoint)['state_dict'])
    family = Transformer(detector, random_queries=4)
    data = detector.data_preprocessor(batch())
    samples = data['data_samples']

    def queries():
        with torch.no_grad(), Recorder(detector, []) as none:
            return family.run(data['inputs'], samples, {'encoder', 'joint'}, none)['queries']

    first, second = queries(), queries()
    assert first.keys() == second.keys() and first
    moved = False
    for name, value in first.items():
        assert value.shape[:2] == (2, 8 + 4) and value.isfinite().all()
        assert torch.equal(value[:, :8], second[name][:, :8])
        moved |= not torch.equal(value[:, 8:], second[name][:, 8:])
    assert moved
    points = first.get('reference_points')
    if points is not None:
        assert ((points >= 0) & (points <= 1)).all()
    none = Transformer(detector, random_queries=0)
    with torch.no_grad(), Recorder(detector, []) as record:
        given = none.run(data['inputs'], samples, {'joint'}, record)['queries']
    assert all(value.shape[1] == 8 for value in given.values())


def test_patterns_multiply_queries(tmp_path):
    student = transformer('DABDETR', num_patterns=2)
    losses = dict(loss_kd_own=entry(), loss_kd_shared=entry('SharedQueryAlignment'))
    result = step(build(student, copy.deepcopy(student), losses, tmp_path))
    assert result['loss_kd_own'] > 0 and result['loss_kd_shared'] > 0


def test_which_detectors_are_of_the_family():
    for kind in KINDS:
        assert type(family_of(MODELS.build(transformer(kind)))) is Transformer
    for name in ('ddq/ddq-detr-4scale_r50_8xb2-12e_coco',):
        model = get_config(f'mmdet::{name}.py').model
        model.backbone.init_cfg = None
        family = family_of(MODELS.build(model))
        assert type(family) is Family
        with pytest.raises(ConfigError, match='mmkd runs only backbone, neck of a DDQDETR'):
            family.part_of(Source('bbox_head'))


def test_options_are_checked(tmp_path):
    losses = dict(loss_kd=entry('SharedQueryAlignment', activation='softmax'))
    with pytest.raises(ConfigError, match='teacher.random_queries: must be at least 0, got -1'):
        build(
            transformer(), transformer(), losses, tmp_path, teacher_options=dict(random_queries=-1)
        )
    with pytest.raises(ConfigError, match='decoder queries to share, but a FasterRCNN has none'):
        faster = family_of(MODELS.build(faster_rcnn()))
        faster.joint_part_of(Source('neck'))


@pytest.mark.parametrize('kind', ['DETR', 'DABDETR'])
def test_a_step_in_mixed_precision(kind, tmp_path):
    """Costs, weights and losses are of full precision whatever the heads give."""
    activation = 'softmax' if kind == 'DETR' else 'sigmoid'
    losses = dict(
        loss_kd_cls=entry(activation=activation),
        loss_kd_bbox=entry(of='box'),
        loss_kd_shared=entry('SharedQueryAlignment', activation=activation),
        loss_kd_memory=dict(
            type='MSE',
            student='encoder',
            teacher='encoder',
            align=dict(type='QueryWeightedFeatureAlignment', gamma=1.0),
        ),
    )
    distiller = build(transformer(kind), transformer(kind), losses, tmp_path)
    with torch.autocast('cpu', torch.bfloat16):
        result = step(distiller)
    assert all(result[name].isfinite() and result[name].dtype is torch.float32 for name in losses)
    sum(result[name] for name in losses).backward()
    assert distiller.neck.convs[0].conv.weight.grad.isfinite().all()


def test_backbone_maps_are_compared_through_a_connector(tmp_path):
    wide = dict(type='ResNet', depth=18, stem_channels=8, base_channels=16, out_indices=(3,))
    teacher = transformer('DETR', neck=dict(in_channels=[128]), backbone=wide)
    connector = dict(type='ConvConnector', in_channels=64, out_channels=128)
    losses = dict(
        loss_kd=dict(type='MSE', student='backbone', teacher='backbone', connector=connector)
    )
    distiller = build(transformer('DETR'), teacher, losses, tmp_path)
    loss = step(distiller)['loss_kd']
    loss.backward()
    assert loss > 0 and distiller.connectors.loss_kd.convs[0].weight.grad.abs().sum() > 0


def test_classes_the_teacher_lacks_and_checkpoints_of_another_head_are_named(tmp_path):
    with pytest.raises(ConfigError, match='no class for unicorn.*class_map.synonyms'):
        build(
            transformer(classes=2),
            transformer(),
            {},
            tmp_path,
            classes=('cat', 'unicorn'),
            init_student=dict(from_teacher=['bbox_head']),
        )
    checkpoint = save_teacher(tmp_path / 'two.pth', transformer(classes=2), None)
    distiller = MODELS.build(
        dict(
            type='Distiller',
            student=transformer(),
            teacher=dict(config=dict(model=transformer()), checkpoint=str(checkpoint)),
            losses=dict(loss_kd=entry(activation='softmax')),
            classes=CLASSES,
        )
    )
    with pytest.raises(CheckpointError, match=r'two.pth.*bbox_head.fc_cls.weight'):
        distiller.init_weights()
