"""A teacher whose data preprocessor pads to multiples that the student's images are not of."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet.registry import MODELS
from tiny_dense import single_stage
from tiny_models import CLASSES, ROI_LOSSES, RPN_LOSSES, batch, faster_rcnn, save_teacher
from tiny_transformers import transformer

from mmkd.errors import ConfigError
from mmkd.nested import tensors_of
from mmkd.recorder import Source
from mmkd.teachers.padding import crop_maps

SIZE = (98, 131)
DENSE = {
    'loss_kd_cls': dict(
        type='SoftLabelBCE',
        student='bbox_head',
        teacher='bbox_head',
        align=dict(type='DenseClassAlignment'),
    ),
    'loss_kd_bbox': dict(
        type='GIoU', student='bbox_head', teacher='bbox_head', align=dict(type='DenseBoxAlignment')
    ),
}


@pytest.fixture
def distil(tmp_path):
    def distil(student, teacher, losses, **options):
        checkpoint = save_teacher(tmp_path / 'teacher.pth', teacher)
        given = dict(config=dict(model=teacher), checkpoint=str(checkpoint), **options)
        distiller = MODELS.build(
            dict(
                type='Distiller',
                student=student,
                teacher=given,
                losses=copy.deepcopy(losses),
                classes=CLASSES,
            )
        )
        distiller.train().init_weights()
        return distiller

    return distil


def step_of(distiller):
    data = distiller.data_preprocessor(batch(size=SIZE), True)
    return data, distiller(**data, mode='loss')


def padding(divisor, **others):
    return dict(data_preprocessor=dict(pad_size_divisor=divisor, **others))


@pytest.mark.parametrize('scale', [1, 1.5])
def test_it_sees_the_images_as_its_own_preprocessor_pads_them(distil, scale):
    """At its own size; enlarged images are padded to the multiple, too."""
    teacher = faster_rcnn(**padding(64, pad_value=7))
    distiller = distil(faster_rcnn(**padding(1)), teacher, ROI_LOSSES, scale=scale)
    data = distiller.data_preprocessor(batch(size=SIZE), True)
    assert tuple(data['inputs'].shape[2:]) == SIZE
    distiller.prepare()
    detector, seen = distiller.teacher.detector, []
    handle = detector.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    distiller(**data, mode='loss')
    handle.remove()
    expected = detector.data_preprocessor(batch(size=SIZE), True)['inputs']
    if scale == 1:
        torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)
    else:
        assert tuple(seen[0].shape[2:]) == (192, 256) and (seen[0][:, :, 147:] == 7).all()


@pytest.mark.parametrize('kind', ['RTMDet', 'YOLOX'])
def test_necks_that_need_multiples_teach_students_that_do_not_pad(distil, kind):
    """Maps of neck and head are those of the padded images, as far as the student's images reach."""
    teacher = single_stage(kind, data_preprocessor=dict(pad_size_divisor=32))
    student = single_stage('FCOS', data_preprocessor=dict(pad_size_divisor=1))
    student.neck.update(add_extra_convs=False, num_outs=3, start_level=1)
    student.bbox_head.strides = [8, 16, 32]
    student.bbox_head.regress_ranges = ((-1, 64), (64, 128), (128, 1e8))
    losses = {
        f'loss_kd_{module}': dict(
            type='AttentionTransfer',
            student='neck',
            teacher=dict(module=module, index=index),
            align=dict(type='FeatureAlignment', same_channels=False),
        )
        for module, index in (('neck', None), ('bbox_head', 0))
    }
    distiller = distil(student, teacher, losses)
    data = distiller.data_preprocessor(batch(size=SIZE), True)
    distiller.prepare()
    record = distiller._recorders_of(tuple(losses))
    with record.student:
        distiller.student(**data, mode='loss')
    (teacher_pass,) = record.passes
    teacher_pass.run_teacher(
        **data, preprocessor=distiller.data_preprocessor, student=record.student
    )
    detector = distiller.teacher.detector
    own = detector.data_preprocessor(batch(size=SIZE), True)
    with torch.no_grad():
        neck = detector.extract_feat(own['inputs'])
        head = detector.bbox_head(neck)
    sizes = [(13, 17), (7, 9), (4, 5)]
    assert [tuple(level.shape[2:]) for level in record.student[Source('neck')]] == sizes
    for source, whole in ((Source('neck'), neck), (Source('bbox_head', index=0), head[0])):
        found = teacher_pass.recorder_of(source)[source]
        assert [tuple(level.shape[2:]) for level in found] == sizes
        for level, padded, (height, width) in zip(found, whole, sizes, strict=True):
            torch.testing.assert_close(level, padded[:, :, :height, :width], rtol=1e-4, atol=1e-5)
    for loss in distiller(**data, mode='loss').values():
        assert all(torch.isfinite(each).all() for each in tensors_of(loss))


@pytest.mark.parametrize('kind', ['GFL', 'FCOS'])
def test_priors_of_a_padded_teacher_are_those_of_the_student(distil, kind):
    teacher = single_stage(kind, data_preprocessor=dict(pad_size_divisor=32))
    student = single_stage(kind, data_preprocessor=dict(pad_size_divisor=1))
    _, losses = step_of(distil(student, teacher, DENSE))
    assert all(torch.isfinite(losses[name]) and losses[name] > 0 for name in DENSE)


def test_proposals_and_regions_of_a_padded_teacher(distil):
    teacher = faster_rcnn(**padding(64))
    distiller = distil(faster_rcnn(**padding(1)), teacher, dict(ROI_LOSSES, **RPN_LOSSES))
    data, losses = step_of(distiller)
    values = [value for name, value in losses.items() if name.startswith('loss_kd')]
    assert len(values) == len(ROI_LOSSES) + len(RPN_LOSSES)
    assert all(torch.isfinite(value) and value > 0 for value in values)
    chosen = distil(
        faster_rcnn(**padding(1)), teacher, {'loss_kd_cls': ROI_LOSSES['loss_kd_cls']},
        proposals='teacher',
    )  # fmt: skip
    _, losses = step_of(chosen)
    assert torch.isfinite(losses['loss_kd_cls'])


def test_a_transformer_whose_encoder_pads_otherwise_is_refused_before_the_first_step(distil):
    loss = dict(
        type='MSE',
        student='encoder',
        teacher='encoder',
        align=dict(type='EncoderMemoryAlignment'),
    )
    teacher = transformer('DeformableDETR', data_preprocessor=dict(pad_size_divisor=32))
    distiller = distil(transformer('DeformableDETR'), teacher, dict(loss_kd=loss))
    with pytest.raises(ConfigError, match=r'data_preprocessor\.pad_size_divisor.*multiple of 32'):
        distiller.prepare()


def test_what_is_no_map_of_the_images_is_not_cropped():
    padded, size = (128, 160), SIZE
    maps = torch.zeros(2, 8, 16, 20)
    others = [
        torch.zeros(2, 320, 8),  # tokens
        torch.zeros(50, 8, 16, 20),  # regions
        torch.zeros(2, 8, 20, 16),  # turned
        torch.zeros(2, 8, 7, 7),
    ]
    cropped, kept = crop_maps((maps, others), 2, padded, size)
    assert cropped.shape == (2, 8, 13, 17)
    assert [each.shape for each in tensors_of(kept)] == [each.shape for each in others]
