"""Single-stage detectors as teacher and student."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hub import get_config
from tiny_dense import KINDS, single_stage
from tiny_models import CLASSES, batch, faster_rcnn, save_teacher
from torch import nn

from mmkd.errors import ConfigError, PathError
from mmkd.families import Family, SingleStage, family_of
from mmkd.families.single_stage import boxes_of, run_from
from mmkd.recorder import Recorder, Source

# Per kind a layer in each tower that an activation follows.
LAYERS = {
    'RetinaNet': '{}_convs.0.conv',
    'FCOS': '{}_convs.0.gn',
    'ATSS': '{}_convs.0.gn',
    'PAA': '{}_convs.0.gn',
    'GFL': '{}_convs.0.gn',
    'RTMDet': '{}_convs.*.0.bn',
    'YOLOX': 'multi_level_{}_convs.*.0.bn',
}


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


@pytest.mark.parametrize('kind', KINDS)
def test_a_student_that_is_the_teacher_has_nothing_to_learn(kind, tmp_path):
    distiller = build(single_stage(kind), single_stage(kind), dict(loss_kd=entry()), tmp_path)
    distiller.load_state_dict(distiller.teacher.detector.state_dict())
    for module in distiller.student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    assert step(distiller)['loss_kd'] < 1e-5


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'PAA'])
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
        ('RetinaNet', 'ATSS', entry(), 'different priors.*compare features'),
        ('RetinaNet', 'FCOS', entry(), 'different priors'),
        ('ATSS', 'GFL', entry('distribution'), 'reg_max is None .student. and 16'),
    ],
)
def test_what_cannot_be_paired_says_why(student, teacher, losses, message, tmp_path):
    distiller = build(single_stage(student), single_stage(teacher), dict(loss_kd=losses), tmp_path)
    with pytest.raises(ConfigError, match=f'losses.loss_kd: .*{message}'):
        step(distiller)


def test_a_detector_without_a_dense_head_is_refused(tmp_path):
    losses = dict(loss_kd=dict(entry(), teacher='neck'))
    distiller = build(single_stage(), faster_rcnn(), losses, tmp_path)
    with pytest.raises(ConfigError, match='pairs dense heads; the teacher, a FasterRCNN'):
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


# ------------------------------------------------------------------------------ a head in part


def head_and_features(kind):
    model = MODELS.build(single_stage(kind))
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    model.eval().requires_grad_(False)
    with torch.no_grad():
        return model.bbox_head, model.extract_feat(torch.randn(2, 3, 128, 160))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('tower', ['cls', 'reg'])
def test_the_rest_of_a_head_makes_of_its_own_maps_what_the_whole_head_does(kind, tower):
    head, features = head_and_features(kind)
    layer = LAYERS[kind].format(tower)
    source = Source(layer, copy=True)
    with torch.no_grad(), Recorder(head, [source]) as seen:
        whole = head(features)
    own = [level.requires_grad_() for level in seen[source]]
    rest = run_from(head, layer, [level.clone() for level in own])
    part = dict(cls=0, reg=1)[tower]
    for mine, wanted in zip(rest[part], whole[part], strict=True):
        assert mine.requires_grad
        assert torch.allclose(mine, wanted, atol=1e-5)
    # Predictions that do not come from these maps have no gradient, and their shape.
    assert [level.shape for level in rest[1 - part]] == [level.shape for level in whole[1 - part]]
    assert not any(level.requires_grad for level in rest[1 - part])
    # The maps learn; the head is the one it was.
    gradients = torch.autograd.grad(sum(level.sum() for level in rest[part]), own)
    assert all(gradient.any() for gradient in gradients)
    assert all('forward' not in vars(module) for module in head.modules())
    with torch.no_grad():
        again = head(features)
    assert all(torch.equal(a, b) for a, b in zip(again[part], whole[part], strict=True))


@pytest.mark.parametrize('kind', ['GFL', 'RTMDet', 'YOLOX'])
def test_what_comes_before_the_layer_is_not_computed(kind):
    head, features = head_and_features(kind)
    layer = LAYERS[kind].format('cls')
    source, ran = Source(layer, copy=True), []
    with Recorder(head, [source]) as seen, torch.no_grad():
        head(features)
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            own = module._conv_forward
            module._conv_forward = lambda *args, own=own, name=name: ran.append(name) or own(*args)
    run_from(head, layer, seen[source])
    # Left are the predictions and the towers' layers after it.
    assert not [name for name in ran if '_convs' in name and name.split('.')[-2] == '0']
    assert [name for name in ran if '_convs' not in name]


def test_predictions_of_the_other_tower_are_not_computed():
    head, features = head_and_features('GFL')
    layer = LAYERS['GFL'].format('cls')
    with Recorder(head, [source := Source(layer, copy=True)]) as seen, torch.no_grad():
        head(features)
    maps = [level.clone().requires_grad_() * 1 for level in seen[source]]
    ran = []
    for name in ('gfl_cls', 'gfl_reg'):
        own = head.get_submodule(name)._conv_forward
        head.get_submodule(name)._conv_forward = lambda *args, own=own, name=name: (
            ran.append(name) or own(*args)
        )
    run_from(head, layer, maps)
    assert set(ran) == {'gfl_cls'}


def test_what_shadows_a_layers_forward_is_there_again():
    head, features = head_and_features('GFL')
    layer = LAYERS['GFL'].format('cls')
    module = head.get_submodule(layer)
    module.forward = shadow = torch.relu
    with Recorder(head, [source := Source(layer, copy=True)]) as seen, torch.no_grad():
        head(features)
    run_from(head, layer, seen[source])
    assert vars(module)['forward'] is shadow


def test_an_unknown_layer_is_near_a_known_one():
    head, features = head_and_features('GFL')
    with pytest.raises(
        PathError, match=r"GFLHead has no layer 'cls_convs.0.bn'; near: cls_convs.0"
    ):
        run_from(head, 'cls_convs.0.bn', list(features))


# PAA's are ATSS's; its own prediction cannot be had without suppression.
@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'PAA'])
def test_boxes_are_those_that_the_head_predicts(kind):
    """Without threshold and suppression, mmdet's own prediction is the same set of boxes."""
    head, features = head_and_features(kind)
    head.test_cfg.update(nms_pre=-1, min_bbox_size=-1, score_thr=-1.0)
    with torch.no_grad():
        output = head(features)
        meta = [dict(img_shape=(10**6, 10**6), scale_factor=(1.0, 1.0))] * 2
        found = head.predict_by_feat(*output, batch_img_metas=meta, with_nms=False)
        levels = [boxes_of(head, index, level) for index, level in enumerate(output[1])]
    boxes = torch.cat(levels, 1)
    for image, result in enumerate(found):
        wanted = result.bboxes.clamp(min=0).unique(dim=0)
        assert len(wanted) >= 10
        assert torch.cdist(wanted, boxes[image].clamp(min=0), p=1).amin(1).max() < 1e-2


def test_fcos_gives_strides_while_training_and_pixels_afterwards():
    model = MODELS.build(single_stage('FCOS', bbox_head=dict(norm_on_bbox=True)))
    head, features = model.bbox_head, model.extract_feat(torch.randn(2, 3, 128, 160))
    nn.init.normal_(head.conv_reg.weight, std=0.1)
    boxes = {}
    for mode in (True, False):
        head.train(mode)
        boxes[mode] = [boxes_of(head, i, level) for i, level in enumerate(head(features)[1])]
    for training, testing in zip(boxes[True], boxes[False], strict=True):
        assert torch.allclose(training, testing, atol=1e-4)
        assert (training[..., 2:] - training[..., :2]).any()
