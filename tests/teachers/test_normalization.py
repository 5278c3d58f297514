"""The teacher sees the images in its own normalisation."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from tiny_models import batch, faster_rcnn

from mmkd.teachers.normalization import Renormalization


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_it_sees_the_images_as_its_own_preprocessor_would_make_them(bgr_to_rgb):
    student = MODELS.build(faster_rcnn()).data_preprocessor
    own = dict(mean=[103.5, 116.3, 123.7], std=[1.0, 2.0, 3.0], bgr_to_rgb=bgr_to_rgb, pad_value=7)
    wanted = MODELS.build(faster_rcnn(data_preprocessor=own)).data_preprocessor
    given, expected = student(batch(), True), wanted(batch(), True)
    assert given['inputs'][1, :, :, 112:].abs().sum() == 0  # the second image is padded
    seen = Renormalization(student, wanted)(given['inputs'], given['data_samples'])
    assert torch.allclose(seen, expected['inputs'], atol=1e-3)
    alike = Renormalization(student, student)
    assert alike(given['inputs'], given['data_samples']) is given['inputs']


def test_without_normalisation_it_sees_pixels():
    student = MODELS.build(faster_rcnn()).data_preprocessor
    plain = MODELS.build(faster_rcnn(data_preprocessor=dict(mean=None, std=None))).data_preprocessor
    given, expected = student(batch(), True), plain(batch(), True)
    seen = Renormalization(student, plain)(given['inputs'], given['data_samples'])
    assert torch.allclose(seen, expected['inputs'], atol=1e-3)


@pytest.mark.parametrize('name', ['to_rgb', 'channel_conversion', '_channel_conversion'])
def test_a_preprocessor_of_another_library_names_its_channel_order_otherwise(name):
    """mmpretrain's, mmseg's and mmdet's name, on a preprocessor that has no other."""
    student = MODELS.build(faster_rcnn(data_preprocessor=dict(bgr_to_rgb=False))).data_preprocessor
    wanted = MODELS.build(faster_rcnn()).data_preprocessor
    expected = wanted(batch(), True)['inputs']
    wanted._channel_conversion = False
    setattr(wanted, name, True)
    given = student(batch(), True)
    seen = Renormalization(student, wanted)(given['inputs'], given['data_samples'])
    assert torch.allclose(seen, expected, atol=1e-5)


@pytest.mark.parametrize('mean', [[123.675], [120.0]])
def test_a_teacher_in_colour_sees_the_grey_images_of_a_student(mean):
    """Each channel has the grey value, as its own preprocessor has it of a grey file."""
    grey = dict(mean=mean, std=[58.395], bgr_to_rgb=False)
    student = MODELS.build(faster_rcnn(data_preprocessor=grey)).data_preprocessor
    same = dict(mean=mean * 3, std=[58.395] * 3, bgr_to_rgb=False)
    for wanted in (same, dict()):
        teacher = MODELS.build(faster_rcnn(data_preprocessor=wanted)).data_preprocessor
        data = batch()
        colour = dict(data, inputs=[each[:1].expand(3, -1, -1).clone() for each in data['inputs']])
        expected = teacher(colour, True)['inputs']
        data['inputs'] = [each[:1].clone() for each in data['inputs']]
        given = student(data, True)
        assert given['inputs'].shape[1] == 1
        seen = Renormalization(student, teacher)(given['inputs'], given['data_samples'])
        assert torch.allclose(seen, expected, atol=1e-5)
