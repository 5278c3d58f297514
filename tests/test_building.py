"""Detectors built of a config alone."""

import pytest
import torch
from mmdet.registry import MODELS
from tiny_transformers import transformer
from torch import nn

from mmkd.building import build_detector, build_random, without_pretrained
from mmkd.errors import ConfigError


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


def test_a_package_that_is_not_installed_is_one_line():
    """As several detectors of mmdet raise it: a RuntimeError."""

    @MODELS.register_module(force=True)
    class Needy(nn.Module):
        def __init__(self) -> None:
            raise RuntimeError('transformers is not installed, please install it')

    with pytest.raises(ConfigError, match='model: needs a package that is not installed: transf'):
        build_detector(dict(type='Needy'), 'model')


def test_a_part_without_type_is_one_line():
    with pytest.raises(ConfigError, match='model: must have a type'):
        build_detector(dict(config='student.py'), 'model')


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
