"""The table of dense heads, each against what mmdet's own head predicts and assigns."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.dense_heads import FreeAnchorRetinaHead, RetinaHead
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from tiny_dense import KINDS, head_and_features, single_stage
from tiny_models import CLASSES, batch, merge, save_teacher
from torch import nn

from mmkd.alignments.dense_output import DenseOutput
from mmkd.errors import ConfigError
from mmkd.families.class_scores import uses_softmax
from mmkd.families.dense_heads import (
    DENSE_HEADS,
    dense_head,
    label_sources,
    predicted_boxes,
    prediction_scores,
)


def distil(kind, losses, tmp_path):
    """A student that is its teacher, in training mode but for its batch normalisation."""
    checkpoint = save_teacher(tmp_path / 'teacher.pth', single_stage(kind))
    distiller = MODELS.build(
        dict(
            type='Distiller',
            student=single_stage(kind),
            teacher=dict(config=dict(model=single_stage(kind)), checkpoint=str(checkpoint)),
            losses=losses,
            classes=CLASSES,
        )
    )
    distiller.train().init_weights()
    distiller.load_state_dict(distiller.teacher.detector.state_dict())
    for module in distiller.student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return distiller


def images():
    """Two, with objects at opposite corners."""
    data = batch(size=(128, 160))
    for sample, boxes in zip(
        data['data_samples'], ([[4.0, 4, 70, 50]], [[90.0, 60, 150, 120]]), strict=True
    ):
        sample.gt_instances = sample.gt_instances[:1]
        sample.gt_instances.bboxes = torch.tensor(boxes)
    return data


def step(distiller):
    if type(distiller.bbox_head).__name__ == 'PAAHead':
        pytest.importorskip(
            'sklearn', reason="mmdet's PAA fits a mixture with scikit-learn to train"
        )
    MessageHub.get_current_instance().update_info('epoch', 0)  # TOOD's first losses depend on it
    torch.manual_seed(0)
    return distiller(**distiller.data_preprocessor(images(), True), mode='loss')


@pytest.mark.parametrize('kind', KINDS)
def test_at_equal_weights_classes_and_boxes_agree(kind, tmp_path):
    """The student trains, the teacher evaluates; heads may give other outputs in either mode."""
    by_class = 'KLDivergence' if kind == 'SSD' else 'SoftLabelBCE'
    losses = dict(
        loss_cls=dict(type=by_class, align='DenseClassAlignment'),
        loss_box=dict(type='L1', align='DenseBoxAlignment'),
    )
    distiller = distil(kind, {f'{name}_kd': loss for name, loss in losses.items()}, tmp_path)
    found = step(distiller)
    assert max(found['loss_cls_kd'], found['loss_box_kd']) < 1e-5
    with torch.no_grad():
        for weight in distiller.bbox_head.parameters():
            weight += 0.05 * torch.randn_like(weight)
    found = step(distiller)
    assert min(found['loss_cls_kd'], found['loss_box_kd']) > 1e-5


@pytest.mark.parametrize('kind', KINDS)
def test_boxes_and_scores_are_those_that_the_head_predicts(kind, monkeypatch):
    """Without threshold and suppression, each class of each prior is a detection of mmdet's."""
    head, features = head_and_features(kind)
    if kind == 'SSD':
        head.loss_cls = None  # which mmdet's prediction asks for a custom activation
    if kind == 'PAA':  # whose prediction always suppresses
        monkeypatch.setattr(
            'mmdet.models.dense_heads.paa_head.multiclass_nms', lambda *args, **_: seen.append(args)
        )
        head.with_score_voting = False
    seen = []
    head.test_cfg.update(nms_pre=10**6, min_bbox_size=-1, score_thr=-1.0)
    meta = [dict(img_shape=(10**6, 10**6), scale_factor=(1.0, 1.0))] * 2
    with torch.no_grad():
        value = head(features)
        if kind == 'PAA':
            for image in range(2):
                with pytest.raises(TypeError):  # nothing comes back from the spy
                    single = [[level[image : image + 1] for level in part] for part in value]
                    head.predict_by_feat(*single, batch_img_metas=meta[:1])
            found = [
                (
                    boxes.repeat_interleave(3, 0),
                    scores[:, :3].flatten(),
                    torch.arange(3).repeat(len(boxes)),
                )
                for boxes, scores, *_ in seen
            ]
        else:
            found = head.predict_by_feat(*value, batch_img_metas=meta, with_nms=False)
            found = [(each.bboxes, each.scores, each.labels) for each in found]
    for image, (boxes, scores, labels) in enumerate(found):
        own = [[level[image : image + 1] for level in part] for part in value]
        output = DenseOutput(tuple(own), 'teacher', head, range(len(own[0])))
        quality = output.quality() if dense_head(head).quality else None
        ours = prediction_scores(head, output.class_logits(), quality)
        theirs = torch.cat(output.boxes(), 1)[0].clamp(min=0, max=10**6)
        assert len(theirs) >= 10
        if kind == 'YOLOX':  # which predicts the top-scoring class alone
            ours = ours.masked_fill(ours < ours.amax(-1, keepdim=True), -1)
        for label in range(3):
            wanted = torch.cat([boxes.clamp(min=0, max=10**6), 1000 * scores[:, None]], 1)[
                labels == label
            ]
            mine = torch.cat([theirs, 1000 * ours[:, label, None]], 1)[ours[:, label] >= 0]
            assert len(mine) == len(wanted)
            apart = torch.cdist(mine, wanted, p=1)
            # A thousandth of a score, a hundredth of a pixel, and the rounding of large boxes.
            limit = 1e-2 + 1e-4 * wanted.abs().amax(-1)
            assert (apart.amin(0) < limit).all() and (apart <= limit).any(1).all()


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'AutoAssign'])
def test_labels_select_priors_at_the_objects_of_their_image(kind, tmp_path, monkeypatch):
    loss = dict(type='L1', align=dict(type='DenseBoxAlignment', select='labels', confidence=False))
    distiller, pairs = distil(kind, dict(loss_kd=loss), tmp_path), []
    align = distiller.entries['loss_kd'].align
    paired = align.pair

    def watched(*args):
        pairs.append(paired(*args))
        return pairs[-1]

    monkeypatch.setattr(align, 'pair', watched)
    step(distiller)
    (pair,), head, device = pairs, distiller.bbox_head, torch.device('cpu')
    assert 0 < pair.weight.sum() < 0.7 * len(pair.weight)
    sizes = [
        level.shape[2:] for level in head(distiller.extract_feat(torch.zeros(1, 3, 128, 160)))[0]
    ]
    start = 0
    for level, size in enumerate(sizes):
        priors = head.prior_generator.single_level_grid_priors(size, level, device=device)
        if priors.shape[-1] == 2:
            stride = head.prior_generator.strides[level]
            reach = (stride[0] if isinstance(stride, tuple) else stride) * 2
            priors = torch.cat([priors - reach, priors + reach], -1)
        for sample in images()['data_samples']:
            chosen = priors[pair.weight[start : start + len(priors)] > 0]
            assert (bbox_overlaps(chosen, sample.gt_instances.bboxes) > 0).all()
            start += len(priors)
    assert start == len(pair.weight)


def test_a_head_without_labels_of_priors_says_so(tmp_path):
    loss = dict(type='L1', align=dict(type='DenseBoxAlignment', select='labels'))
    with pytest.raises(
        ConfigError, match="'labels' for a AutoAssignHead, whose labels of priors are not known"
    ):
        step(distil('AutoAssign', dict(loss_kd=loss), tmp_path))


@pytest.mark.parametrize('kind', ['VFNet', 'TOOD', 'SSD'])
def test_heads_that_cannot_be_crossed_say_so(kind, tmp_path):
    align = dict(type='DenseClassAlignment', crossed='bbox_head.cls_convs.0')
    losses = dict(loss_kd=dict(type='KLDivergence', align=align))
    with pytest.raises(ConfigError, match=f'align.crossed: the layers of a {kind}Head read more'):
        step(distil(kind, losses, tmp_path))


# ------------------------------------------------------------------------------ other heads


@pytest.mark.parametrize(
    ('config', 'head'),
    [
        ('foveabox/fovea_r50_fpn_4xb4-1x_coco.py', 'FoveaHead'),
        ('reppoints/reppoints-moment_r50_fpn_1x_coco.py', 'RepPointsHead'),
        ('fsaf/fsaf_r50_fpn_1x_coco.py', 'FSAFHead'),
        ('yolof/yolof_r50-c5_8xb8-1x_coco.py', 'YOLOFHead'),
    ],
)
def test_other_heads_are_refused_by_name_but_their_features_are_not(config, head, tmp_path):
    """Before the first iteration, in one line that names what is known."""
    model = get_config(f'mmdet::{config}').model
    merge(model, dict(bbox_head=dict(num_classes=3)))
    model.backbone.init_cfg = None
    checkpoint = save_teacher(tmp_path / 'teacher.pth', model)
    config = dict(
        type='Distiller',
        student=model,
        teacher=dict(config=dict(model=model), checkpoint=str(checkpoint)),
        classes=CLASSES,
    )
    losses = dict(loss_kd=dict(type='KLDivergence', align='DenseClassAlignment'))
    with pytest.raises(
        ConfigError, match=f'losses.loss_kd: .* one of RetinaHead, .*, got {head};'
    ) as raised:
        MODELS.build(dict(config, losses=losses)).prepare()
    assert '\n' not in str(raised.value)
    MODELS.build(dict(config, losses=dict(loss_kd=dict(type='MSE', student='neck')))).prepare()


class OtherLoss(RetinaHead):
    """Gives what its parent gives."""

    def loss_by_feat(self, *args, **kwargs):
        return {}


class OtherOutput(RetinaHead):
    """Gives something else."""

    def forward_single(self, x):
        return super().forward_single(x)[::-1]


def test_a_subclass_counts_as_its_parent_unless_it_gives_other_outputs():
    options = dict(num_classes=3, in_channels=8)
    for kind in (OtherLoss, FreeAnchorRetinaHead):
        assert dense_head(kind(**options)) is DENSE_HEADS['RetinaHead']
        assert not label_sources(kind(**options))  # which its own loss may assign in another way
    assert label_sources(RetinaHead(**options))
    assert dense_head(MODELS.build(single_stage('GFL')).bbox_head) is DENSE_HEADS['GFLHead']
    with pytest.raises(ConfigError, match='a dense head must be one of .*, got OtherOutput;'):
        dense_head(OtherOutput(**options))


def test_fcos_gives_strides_while_training_and_pixels_afterwards():
    model = MODELS.build(single_stage('FCOS', bbox_head=dict(norm_on_bbox=True)))
    head, features = model.bbox_head, model.extract_feat(torch.randn(2, 3, 128, 160))
    nn.init.normal_(head.conv_reg.weight, std=0.1)
    boxes = {}
    for mode in (True, False):
        head.train(mode)
        boxes[mode] = [predicted_boxes(head, i, level) for i, level in enumerate(head(features)[1])]
    for training, testing in zip(boxes[True], boxes[False], strict=True):
        assert torch.allclose(training, testing, atol=1e-4)
        assert (training[..., 2:] - training[..., :2]).any()


def test_a_softmax_has_its_background_last():
    head, _ = head_and_features('SSD')
    assert uses_softmax(head)
    logits = torch.tensor([[1.0, 2.0, 0.5, 9.0]])
    assert torch.equal(prediction_scores(head, logits, None), logits.softmax(-1)[:, :3])
