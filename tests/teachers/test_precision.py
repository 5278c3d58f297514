"""A teacher in half precision gives what it gives in float32, within a stated tolerance."""

from __future__ import annotations

import copy

import pytest
import torch
from mmcv.ops import roi_align
from mmdet.registry import MODELS
from mmengine.hub import get_config
from tiny_dense import single_stage
from tiny_models import (
    CLASSES,
    ROI_LOSSES,
    RPN_LOSSES,
    batch,
    cascade_rcnn,
    faster_rcnn,
    save_teacher,
)
from tiny_transformers import transformer
from torch import nn

from mmkd.errors import ConfigError
from mmkd.families.two_stage import ROIS
from mmkd.nested import map_tensors
from mmkd.recorder import Recorder, Source
from mmkd.teachers import LiveTeacher

BOXES = [[0.0, 4.3, 6.7, 40.1, 50.9], [1.0, 10.2, 3.1, 70.3, 80.6]]
# How far outputs may lie from those in float32, as a share of their norm, for eight bits of precision.
HALF = 3e-2
cuda = pytest.param(
    'cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
)


def with_deformable_convolutions() -> dict:
    dcn = dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)
    backbone = dict(dcn=dcn, stage_with_dcn=(False, False, False, True))
    return faster_rcnn(depth=50, backbone=backbone, neck=dict(in_channels=[32, 64, 128, 256]))


def tood() -> dict:
    """A head that calls a deformable convolution as a function, not as a module."""
    model = get_config('mmdet::tood/tood_r50_fpn_1x_coco.py').model
    model.backbone = dict(type='ResNet', depth=18, stem_channels=8, base_channels=8)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=32)
    model.bbox_head.update(in_channels=32, feat_channels=32, stacked_convs=2, num_classes=3)
    return model


TEACHERS = {
    'FasterRCNN': (faster_rcnn, ('neck', 'rpn_head', 'roi_head.bbox_head')),
    'CascadeRCNN': (cascade_rcnn, ('neck', 'roi_head.bbox_head.1')),
    'DCN': (with_deformable_convolutions, ('backbone', 'neck')),
    'GFL': (lambda: single_stage('GFL'), ('neck', 'bbox_head')),
    'TOOD': (tood, ('bbox_head',)),
    'DETR': (lambda: transformer('DETR'), ('neck', 'encoder', 'decoder', 'bbox_head')),
    'DeformableDETR': (lambda: transformer('DeformableDETR', layers=(1, 1)), ('encoder',)),
}


class Pass:
    """A teacher with options, and what it computes on a batch and on proposals of a student."""

    def __init__(self, folder, config, device='cpu', **options):
        path = folder / 'teacher.pth'
        if not path.exists():
            save_teacher(path, config)
        self.teacher = LiveTeacher(config=dict(model=config), checkpoint=str(path), **options)
        self.student = MODELS.build(faster_rcnn()).to(device)
        self.proposals = torch.tensor(BOXES, device=device)

    def __call__(self, *modules, **of_source):
        sources = [Source(module, **of_source) for module in modules]
        with self.teacher.recorder(sources) as seen:
            self.run({self.teacher.family.part_of(source) for source in sources})
        return [seen[source] for source in sources]

    def run(self, parts, size=(96, 128)):
        data = self.student.data_preprocessor(batch(size=size), True)
        feed = Recorder(self.student, [ROIS])
        feed._calls = {ROIS: [[self.proposals]]}
        return self.teacher.run(
            data['inputs'], data['data_samples'], self.student.data_preprocessor, parts, feed
        )


def tensors(value):
    found = []
    map_tensors(lambda each: found.append(each) or each, value)
    return found


def distance(given, wanted):
    """The largest distance of any tensor, as a share of its norm."""
    given, wanted = tensors(given), tensors(wanted)
    assert [each.shape for each in given] == [each.shape for each in wanted]
    assert not any(each.dtype in (torch.bfloat16, torch.float16) for each in given)
    shares = [(a - b).norm() / b.norm().clamp(min=1e-6) for a, b in zip(given, wanted, strict=True)]
    return max(shares).item()


# ------------------------------------------------------------------------------ outputs


@pytest.mark.parametrize('device', ['cpu', cuda])
@pytest.mark.parametrize('kind', TEACHERS)
def test_outputs_agree_with_float32(tmp_path, kind, device):
    make, modules = TEACHERS[kind]
    # Sampling points and softmaxes of random weights add to the error.
    tolerance = HALF * (2 if kind == 'DeformableDETR' else 1)
    plain = Pass(tmp_path, make(), device)(*modules)
    half = Pass(tmp_path, make(), device, amp='bfloat16')(*modules)
    assert 1e-4 < distance(half, plain) < tolerance


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('kind', ['FasterRCNN', 'GFL', 'DETR'])
def test_float16_agrees_with_the_plain_pass(tmp_path, kind):
    make, modules = TEACHERS[kind]
    plain = Pass(tmp_path, make(), 'cuda')(*modules)
    assert distance(Pass(tmp_path, make(), 'cuda', amp='float16')(*modules), plain) < 5e-3


def test_boxes_are_not_rounded_to_half_precision(tmp_path):
    cheap = Pass(tmp_path, faster_rcnn(), amp='bfloat16')
    (rois,) = cheap('roi_head.bbox_roi_extractor.roi_layers.0', capture='input', index=1)
    assert torch.equal(rois, torch.tensor(BOXES))
    found = []
    for options in ({}, dict(amp='bfloat16')):
        model = Pass(tmp_path, faster_rcnn(), proposals='teacher', **options)
        found.append(model.run({'roi'})['rois']['roi_head.bbox_head'][:, 1:])
    plain, cheap = found
    assert not torch.equal(cheap, cheap.bfloat16().float())
    # Each of the first ones is found again, to a pixel.
    apart = (plain[:5, None] - cheap[None]).abs().amax(-1)
    assert apart.amin(1).max() < 1


def test_what_is_not_read_stays_in_half_precision(tmp_path):
    cheap = Pass(tmp_path, faster_rcnn(), amp='bfloat16')
    read, unread = sources = [Source('backbone'), Source('neck')]
    with cheap.teacher.recorder(sources) as seen:
        cheap.run({'features'})
    first = seen[read]
    assert {each.dtype for each in tensors(first)} == {torch.float32}
    assert all(a is b for a, b in zip(seen[read], first, strict=True))  # one copy
    assert {each.dtype for each in tensors(seen._calls[unread])} == {torch.bfloat16}


def test_by_default_a_teacher_shares_the_students_autocast_and_false_keeps_it_out(tmp_path):
    plain = Pass(tmp_path, faster_rcnn())('neck')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        shared = Pass(tmp_path, faster_rcnn())('neck')
        apart = Pass(tmp_path, faster_rcnn(), amp=False)('neck')
        assert torch.is_autocast_enabled('cpu')
    assert 1e-4 < distance(shared, plain) < HALF
    assert distance(apart, plain) == 0


# ------------------------------------------------------------------------------ losses

NECK = dict(student='neck', teacher='neck')
SAME = dict(align=dict(type='FeatureAlignment', same_channels=False))
CONTEXT = dict(type='GlobalContextConnector', channels=16)
MASKED = dict(type='MaskedGenerationConnector', in_channels=16, out_channels=16)
TWO_STAGE_LOSSES = dict(
    **ROI_LOSSES,
    **RPN_LOSSES,
    loss_mse=dict(NECK, type='MSE'),
    loss_cwd=dict(NECK, type='CWD'),
    loss_pkd=dict(NECK, type='PKD'),
    loss_fgd=dict(NECK, type='FGD', align=dict(type='ForegroundFeatureAlignment')),
    loss_context=dict(NECK, type='MSE', connector=CONTEXT, teacher_connector=CONTEXT),
    loss_mgd=dict(NECK, type='MSE', reduction='sum', connector=MASKED),
    loss_attention=dict(NECK, **SAME, type='AttentionTransfer'),
    loss_backbone=dict(type='L1', student='backbone.layer2', teacher='backbone.layer2'),
)
HEAD = dict(student='bbox_head', teacher='bbox_head')
DENSE_LOSSES = dict(
    loss_class=dict(HEAD, type='SoftLabelBCE', align=dict(type='DenseClassAlignment')),
    loss_edge=dict(HEAD, type='KLDivergence', align=dict(type='DenseDistributionAlignment')),
    loss_box=dict(
        HEAD,
        type='GIoU',
        align=dict(type='DenseBoxAlignment', crossed='bbox_head.reg_convs.0.gn'),
        student=dict(module='bbox_head.reg_convs.0.gn', copy=True),
    ),
)
MATCHED = dict(HEAD, align=dict(type='HungarianQueryAlignment', of='class'))
QUERY_LOSSES = dict(
    loss_class=dict(MATCHED, type='KLDivergence'),
    loss_shared=dict(HEAD, type='KLDivergence', align=dict(type='SharedQueryAlignment')),
    loss_memory=dict(
        type='MSE', student='encoder', teacher='encoder', align=dict(type='EncoderMemoryAlignment')
    ),
    loss_seen=dict(NECK, type='MSE', align=dict(type='QueryWeightedFeatureAlignment')),
)
PAIRS = {
    'FasterRCNN': (faster_rcnn, TWO_STAGE_LOSSES),
    'GFL': (lambda: single_stage('GFL'), DENSE_LOSSES),
    'DETR': (lambda: transformer('DETR'), QUERY_LOSSES),
    # Its queries are what the two models share, so those of a half-precision pass reach the student.
    'DeformableDETR': (
        lambda: transformer('DeformableDETR', layers=(1, 1)),
        dict(loss_shared=dict(QUERY_LOSSES['loss_shared'], activation='sigmoid')),
    ),
}


def step(folder, config, losses, **options):
    """The distillation losses of one step, after a backward pass."""
    torch.manual_seed(0)
    path = folder / 'teacher.pth'
    if not path.exists():
        save_teacher(path, config)
    torch.manual_seed(0)
    distiller = MODELS.build(
        dict(
            type='Distiller',
            student=config,
            teacher=dict(config=dict(model=config), checkpoint=str(path), **options),
            losses=copy.deepcopy(losses),
            classes=CLASSES,
        )
    )
    distiller.train().init_weights()
    data = distiller.data_preprocessor(batch(), True)
    torch.manual_seed(0)
    found = distiller(**data, mode='loss')
    distiller.parse_losses(found)[0].backward()
    assert all(
        weight.grad is None or weight.grad.isfinite().all() for weight in distiller.parameters()
    )
    return distiller, {name: found[name].detach() for name in losses}


@pytest.mark.parametrize('kind', PAIRS)
def test_losses_agree_with_those_in_float32(tmp_path, kind):
    make, losses = PAIRS[kind]
    _, plain = step(tmp_path, make(), losses)
    _, half = step(tmp_path, make(), losses, amp='bfloat16')
    for name in losses:
        assert half[name].dtype == torch.float32
        assert half[name].item() == pytest.approx(plain[name].item(), rel=2 * HALF), name


@pytest.mark.parametrize('amp', [None, False, 'bfloat16'])
@pytest.mark.parametrize('kind', ['GFL', 'DETR'])
def test_a_student_under_autocast_learns_from_any_precision(tmp_path, kind, amp):
    make, losses = PAIRS[kind]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        _, plain = step(tmp_path, make(), losses)
        _, found = step(tmp_path, make(), losses, amp=amp)
    for name in losses:
        assert found[name].item() == pytest.approx(plain[name].item(), rel=2 * HALF), name


def test_queries_that_the_encoder_chose_reach_the_student_in_float32(tmp_path):
    cheap = Pass(tmp_path, transformer('TwoStageDeformableDETR', layers=(1, 1)), amp='bfloat16')
    queries = cheap.run({'joint'})['queries']
    assert {name: each.dtype for name, each in queries.items()} == dict.fromkeys(
        ('query', 'query_pos', 'reference_points'), torch.float32
    )


# ------------------------------------------------------------------------------ the average


def test_the_students_average_keeps_up_in_half_precision(tmp_path):
    average = dict(type='ExponentialMovingAverage', momentum=0.5)
    losses = dict(loss_neck=dict(NECK, type='MSE'))
    distiller = MODELS.build(
        dict(
            type='Distiller',
            student=faster_rcnn(),
            teacher=dict(ema=average, amp='bfloat16'),
            losses=losses,
            classes=CLASSES,
        )
    )
    distiller.train().init_weights()
    data = distiller.data_preprocessor(batch(), True)
    assert distiller(**data, mode='loss')['loss_neck'] < 1e-2
    with torch.no_grad():
        for weight in distiller.student.parameters():
            weight.mul_(1.5)
    for _ in range(2):  # the first update of an average is a copy
        distiller.teachers.update_averages(distiller.student)
    teacher, student = distiller.teacher.detector, distiller.student
    for (name, ours), theirs in zip(student.named_parameters(), teacher.parameters(), strict=True):
        assert torch.allclose(ours, theirs), name


# ------------------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(amp='bf16'), "teacher.amp: must be one of .*, got 'bf16'; near: bfloat16"),
        (
            dict(amp=True),
            "teacher.amp: must be one of 'bfloat16', 'float16', False or None, got True",
        ),
    ],
)
def test_wrong_options_are_refused_before_the_checkpoint_is_read(options, message):
    with pytest.raises(ConfigError, match=message) as raised:
        LiveTeacher(config=dict(model=faster_rcnn()), checkpoint='none.pth', **options)
    assert '\n' not in str(raised.value)


def test_float16_is_refused_on_the_cpu(tmp_path):
    with pytest.raises(ConfigError, match="teacher.amp: 'float16' needs a GPU, .*'bfloat16'"):
        Pass(tmp_path, faster_rcnn(), amp='float16')('neck')


class Pooled(nn.Module):
    """An operator without bfloat16, called as a function."""

    def forward(self, levels):
        return [roi_align(level, torch.tensor(BOXES).to(level), (2, 2)) for level in levels]


def test_an_operator_without_half_precision_is_named_with_the_option(tmp_path):
    half, plain = Pass(tmp_path, faster_rcnn(), amp='bfloat16'), Pass(tmp_path, faster_rcnn())
    for each in (half, plain):
        each.teacher.detector.neck = nn.Sequential(each.teacher.detector.neck, Pooled())
    plain('neck')
    with pytest.raises(
        ConfigError, match='teacher.amp: .* does not support bfloat16 .*BFloat16.*remove amp'
    ) as raised:
        half('neck')
    assert '\n' not in str(raised.value)


def test_other_errors_of_a_teacher_pass_through(tmp_path):
    cheap = Pass(tmp_path, faster_rcnn(), amp='bfloat16')
    cheap.teacher.detector.neck = nn.Linear(3, 3)
    with pytest.raises((TypeError, AttributeError)):
        cheap('neck')
