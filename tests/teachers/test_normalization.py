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
