"""Single-stage detectors as teacher and student."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from tiny_dense import KINDS, LAYERS, single_stage
from tiny_models import CLASSES, batch, faster_rcnn, save_teacher

from mmkd.errors import ConfigError
from mmkd.families import Family, SingleStage, family_of
from mmkd.recorder import Source


def entry(of='class', **align):
    kind = dict(type='DenseClassAlignment' if of == 'class' else 'DenseDistributionAlignment')
    loss = dict(type='SoftLabelBCE') if of == 'class' else dict(type='KLDivergence', tau=10.0)
    return dict(loss, student='bbox_head', teacher='bbox_head', align=dict(kind, **align))


def build(student, teacher, losses, tmp_path, **options):
    checkpoint = save_teacher(tmp_path / 'teacher.pth', teacher)
    model = dict(
        type='Distiller',
        student=student,
        teacher=dict(config=dict(model=teacher), checkpoint=str(checkpoint)),
        losses=losses,
    )
    distiller = MODELS.build({**model, 'classes': CLASSES, **options})
    distiller.train().init_weights()
    return distiller


def step(model):
    MessageHub.get_current_instance().update_info('epoch', 0)  # TOOD's first losses depend on it
    if type(model.bbox_head).__name__ == 'PAAHead':
        pytest.importorskip(
            'sklearn', reason="mmdet's PAA fits a mixture with scikit-learn to train"
        )
    torch.manual_seed(0)
    return model(**model.data_preprocessor(batch(size=(128, 160)), True), mode='loss')


@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_distils_a_step(kind, tmp_path):
    """Next to the student's own losses, which stay as they are; nothing reaches the teacher."""
    losses = dict(loss_kd=entry())
    if kind == 'SSD':  # whose scores go through a softmax
        losses['loss_kd']['type'] = 'KLDivergence'
    distiller = build(single_stage(kind), single_stage(kind), losses, tmp_path)
    plain = MODELS.build(single_stage(kind)).train()
    plain.load_state_dict(distiller.state_dict())
    result, own = step(distiller), step(plain)
    assert set(result) == {*own, 'loss_kd'}
    total, expected = (
        m.parse_losses({k: r[k] for k in own})[0] for m, r in ((distiller, result), (plain, own))
    )
    assert torch.equal(total, expected)
    distiller.zero_grad()
    result['loss_kd'].backward()
    assert result['loss_kd'].isfinite() and result['loss_kd'] > 0
    for part in ('backbone', 'neck', 'bbox_head'):
        grads = [p.grad for p in getattr(distiller, part).parameters() if p.grad is not None]
        assert any(grad.abs().sum() > 0 for grad in grads), part
    teacher = distiller.teacher.detector
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


@pytest.mark.parametrize('kind', [kind for kind in LAYERS if kind != 'PAA'])
def test_each_kind_crosses_and_counts_by_its_own_labels(kind, tmp_path):
    """CrossKD's step: the student's maps through the rest of the teacher's head, divided by objects."""
    layers = {tower: 'bbox_head.' + LAYERS[kind].format(tower) for tower in ('cls', 'reg')}
    normalizer = dict(module='bbox_head.loss_cls', capture='input', index='avg_factor')
    by_number = kind in ('RetinaNet', 'ATSS', 'GFL', 'FCOS')
    losses = {
        f'loss_kd_{tower}': dict(
            type='SoftLabelBCE' if tower == 'cls' else 'GIoU',
            student=dict(module=layer, copy=True),
            teacher='bbox_head',
            align=dict(
                type='DenseClassAlignment' if tower == 'cls' else 'DenseBoxAlignment',
                crossed=layer,
                confidence=tower == 'reg',
                normalizer=normalizer if by_number else 10,
                select='labels' if by_number and tower == 'reg' else 'all',
            ),
        )
        for tower, layer in layers.items()
    }
    distiller = build(single_stage(kind), single_stage(kind), losses, tmp_path)
    if kind == 'YOLOX':  # the exponential of an untrained network's sizes is infinite
        for conv in distiller.teacher.detector.bbox_head.multi_level_conv_reg:
            conv.weight *= 1e-3
    result = step(distiller)
    for name, value in result.items():
        if name.startswith('loss_kd'):
            assert value.isfinite() and value > 0, name
    distiller.zero_grad()
    (result['loss_kd_cls'] + result['loss_kd_reg']).backward()
    head = distiller.bbox_head
    # What follows the crossed layer is the teacher's: the student's own predictions learn nothing.
    silent = [p for n, p in head.named_parameters() if '_convs' not in n]
    assert all(p.grad is None or not p.grad.any() for p in silent)
    assert any(p.grad is not None and p.grad.any() for p in head.parameters())
    assert distiller.backbone.parameters().__next__().grad is not None


def test_kinds_with_the_same_priors_teach_each_other(tmp_path):
    """Also of other classes, and of distributions of box edges."""
    distiller = build(
        single_stage('ATSS', classes=2),
        single_stage('GFL'),
        dict(loss_kd=entry(num_priors=50)),
        tmp_path,
        classes=('person', 'cat'),
    )
    data = batch(size=(128, 160))
    for sample in data['data_samples']:
        sample.gt_instances.labels.clamp_(max=1)
    losses = distiller(**distiller.data_preprocessor(data, True), mode='loss')
    assert losses['loss_kd'] > 0
    losses = dict(loss_kd_cls=entry(), loss_kd_ld=entry('distribution'))
    result = step(build(single_stage('GFL'), single_stage('GFL'), losses, tmp_path))
    assert result['loss_kd_ld'] > 0 and result['loss_kd_ld'].isfinite()


@pytest.mark.parametrize(
    ('student', 'teacher', 'losses', 'message'),
    [
        ('RetinaNet', 'ATSS', entry(), 'must have the same priors.*compare features'),
        ('RetinaNet', 'FCOS', entry(), 'must have the same priors'),
        ('ATSS', 'GFL', entry('distribution'), 'same reg_max, got reg_max=None .student. and 16'),
    ],
)
def test_what_cannot_be_paired_says_why(student, teacher, losses, message, tmp_path):
    distiller = build(single_stage(student), single_stage(teacher), dict(loss_kd=losses), tmp_path)
    with pytest.raises(ConfigError, match=f'losses.loss_kd.align: .*{message}'):
        step(distiller)


def test_a_detector_without_a_dense_head_is_refused(tmp_path):
    losses = dict(loss_kd=dict(entry(), teacher='neck'))
    distiller = build(single_stage(), faster_rcnn(), losses, tmp_path)
    with pytest.raises(
        ConfigError, match='needs dense heads with priors, but the teacher, a FasterRCNN'
    ):
        step(distiller)


def test_the_head_runs_only_where_a_loss_reads_it(tmp_path):
    neck = dict(type='PKD', student='neck', teacher='neck')
    for losses, calls in ((neck, 0), (entry(), 1)):
        distiller = build(single_stage(), single_stage(), dict(loss_kd=losses), tmp_path)
        seen = []
        distiller.teacher.detector.bbox_head.register_forward_hook(lambda *_, s=seen: s.append(1))
        step(distiller)
        assert len(seen) == calls


def test_which_detectors_are_of_the_family():
    for kind in KINDS:
        family = family_of(MODELS.build(single_stage(kind)))
        assert type(family) is SingleStage and family.num_classes() == 3
        assert family.part_of(Source('bbox_head.multi_level_cls_convs')) == 'head'
    model = get_config('mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py').model
    model.backbone.init_cfg = None
    assert type(family_of(MODELS.build(model))) is Family
