"""Detectors built of a config alone."""

import pytest
import torch
from tiny_transformers import transformer

from mmkd.building import build_random, without_pretrained


@pytest.fixture
def undefined_is_nan():
    """What a constructor leaves undefined is NaN, and not what memory held before."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('kind', ['DETR', 'DeformableDETR', 'DINO'])
def test_random_weights_are_all_defined(undefined_is_nan, kind):
    detector = build_random(transformer(kind), 'model')
    assert [name for name, it in detector.named_parameters() if not it.isfinite().all()] == []


def test_random_numbers_stay_as_they_are():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    build_random(transformer('DETR'), 'model')
    assert torch.equal(torch.rand(2), expected)


def test_nothing_is_read_from_files():
    given = dict(
        type='FasterRCNN',
        backbone=dict(
            type='ResNet', init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')
        ),
        rpn_head=[
            dict(type='RPNHead', init_cfg=[dict(type='Normal', layer='Conv2d')]),
            dict(init_cfg=[dict(type='ConvertedCheckpoint', checkpoint='vit.pth')]),
        ],
        neck=dict(type='FPN', pretrained='fpn.pth'),
    )
    copied = without_pretrained(given)
    assert copied['backbone'] == dict(type='ResNet', init_cfg=None)
    assert copied['neck'] == dict(type='FPN', pretrained=None)
    assert copied['rpn_head'] == [given['rpn_head'][0], dict(init_cfg=None)]
    assert given['neck']['pretrained'] == 'fpn.pth'
