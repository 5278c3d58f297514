"""Distilling on images without labels: the teacher's word alone."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
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
from tiny_training import train, training_config, write_coco
from tiny_transformers import transformer

from mmkd.errors import ConfigError


def make(folder, student, teacher, losses, options=None, **others):
    checkpoint = save_teacher(folder / 'teacher.pth', teacher)
    teacher = dict(config=dict(model=teacher), checkpoint=str(checkpoint), **(options or {}))
    model = dict(type='Distiller', student=student, teacher=teacher, losses=losses, classes=CLASSES)
    model = MODELS.build(copy.deepcopy({**model, 'task_losses': False, **others}))
    for module in model.modules():
        if hasattr(module, 'level_embed'):
            torch.nn.init.normal_(module.level_embed)
    return model.train()


def unlabelled(size=(128, 160)):
    data = batch(size=size)
    for sample in data['data_samples']:
        sample.gt_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
    return data


def step(model, data=None):
    torch.manual_seed(0)
    data = copy.deepcopy(data or unlabelled())
    return model(**model.data_preprocessor(data, True), mode='loss')


HEAD = dict(student='bbox_head', teacher='bbox_head')
DENSE = dict(
    loss_kd=dict(HEAD, type='SoftLabelBCE', align=dict(type='DenseClassAlignment')),
    loss_kd_box=dict(HEAD, type='GIoU', align=dict(type='DenseBoxAlignment')),
)
QUERIES = dict(
    loss_kd=dict(
        HEAD, type='KLDivergence', activation='sigmoid', align=dict(type='HungarianQueryAlignment')
    ),
    loss_kd_memory=dict(
        type='MSE', student='encoder', teacher='encoder', align=dict(type='EncoderMemoryAlignment')
    ),
)
ROI = {
    name: dict(entry, align=dict(entry['align'], select='teacher'))
    for name, entry in ROI_LOSSES.items()
}
CASES = {
    'features': (faster_rcnn(), faster_rcnn(channels=24), dict(loss_kd=feature_loss()), {}),
    'rpn': (faster_rcnn(), faster_rcnn(), RPN_LOSSES, {}),
    'roi': (faster_rcnn(), faster_rcnn(), {**ROI, **RPN_LOSSES}, dict(proposals='teacher')),
    'retinanet': (single_stage(), single_stage(), DENSE, {}),
    'yolox': (single_stage('YOLOX'), single_stage('YOLOX'), dict(loss_kd=DENSE['loss_kd']), {}),
    'deformable': (transformer('DeformableDETR'), transformer('DeformableDETR'), QUERIES, {}),
    'dino': (transformer('DINO'), transformer('DINO'), dict(loss_kd=QUERIES['loss_kd']), {}),
    'shared-queries': (
        transformer('DETR'),
        transformer('DETR'),
        dict(loss_kd=dict(HEAD, type='KLDivergence', align=dict(type='SharedQueryAlignment'))),
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize(('student', 'teacher', 'losses', 'options'), CASES.values(), ids=CASES)
def test_a_student_learns_from_the_teacher_alone(tmp_path, student, teacher, losses, options):
    model = make(tmp_path, student, teacher, losses, options)
    result = step(model)
    assert set(result) == set(losses)
    total, _ = model.parse_losses(result)
    total.backward()
    assert total.isfinite() and total > 0
    gradients = [p.grad for p in model.backbone.parameters() if p.grad is not None]
    assert any(gradient.any() for gradient in gradients)
    assert not any(p.grad is not None for p in model.teacher.detector.parameters())


@pytest.mark.parametrize('kind', ['features', 'roi', 'retinanet', 'deformable'])
def test_it_learns_the_same_whether_or_not_there_are_labels(tmp_path, kind):
    """Ground truth in the batch is not looked at."""
    student, teacher, losses, options = CASES[kind]
    model = make(tmp_path, student, teacher, losses, options)
    without = step(model)
    model.load_state_dict(model.state_dict())
    for module in model.student.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    with_labels = step(model, batch(size=(128, 160)))
    for name, value in without.items():
        assert torch.allclose(value, with_labels[name], rtol=1e-5), name


def test_the_losses_are_those_beside_the_students_own(tmp_path):
    """The student's pass without its losses computes the same as the one with them."""
    student, teacher, losses, _ = CASES['retinanet']
    alone = make(tmp_path, student, teacher, losses)
    beside = make(tmp_path, student, teacher, losses, task_losses=True)
    beside.load_state_dict(alone.state_dict())
    data = batch(size=(128, 160))
    mine, both = step(alone, data), step(beside, data)
    assert set(both) > set(mine)
    for name, value in mine.items():
        assert torch.allclose(value, both[name], rtol=1e-5), name


def test_what_needs_labels_says_so(tmp_path):
    same = (faster_rcnn(), faster_rcnn())
    with pytest.raises(
        ConfigError, match="losses.loss_kd_cls: .*samples no proposals.*teacher.proposals='teacher'"
    ):
        step(make(tmp_path, *same, ROI_LOSSES))
    with pytest.raises(
        ConfigError, match='task_losses: False needs at least one distillation loss'
    ):
        make(tmp_path, *same, {})
    late = dict(feature_loss(16, 16), schedule=dict(begin=3, unit='iter'))
    with pytest.raises(ConfigError, match='an active distillation loss in every iteration'):
        step(make(tmp_path, *same, dict(loss_kd=late)))
    labels = dict(DENSE['loss_kd'], align=dict(type='DenseClassAlignment', select='labels'))
    message = r"losses.loss_kd: .*bbox_head.loss_cls.* belongs to the student's own losses"
    with pytest.raises(ConfigError, match=message):
        step(make(tmp_path, single_stage(), single_stage(), dict(loss_kd=labels)))


def test_a_training_on_images_without_annotations(tmp_path):
    """From a file that lists images and nothing on them; what is written is a plain student."""
    data = write_coco(tmp_path / 'coco')
    content = json.loads((data / 'annotations.json').read_text())
    (data / 'annotations.json').write_text(json.dumps(dict(content, annotations=[])))
    teacher = faster_rcnn()
    checkpoint = save_teacher(tmp_path / 'teacher.pth', teacher)
    model = dict(
        type='Distiller',
        student=faster_rcnn(),
        teacher=dict(config=dict(model=teacher), checkpoint=str(checkpoint), proposals='teacher'),
        losses={name: dict(entry, loss_weight=0.01) for name, entry in ROI.items()},
        task_losses=False,
    )
    config = training_config(model, data, tmp_path / 'run', iters=2)
    config.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=False)
    start = MODELS.build(faster_rcnn()).state_dict()
    train(config)
    state = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)['state_dict']
    assert set(state) == set(start)
    MODELS.build(faster_rcnn()).load_state_dict(state, strict=True)
