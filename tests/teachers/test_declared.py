"""What a config declares as teachers."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from tiny_models import CLASSES, batch, faster_rcnn, save_teacher


@pytest.mark.parametrize('options', [dict(channels_last=True), dict(compile=dict(mode='default'))])
def test_options_of_earlier_releases_change_nothing_and_are_named(tmp_path, monkeypatch, options):
    warnings = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *_: warnings.append(str(text)))
    checkpoint = str(save_teacher(tmp_path / 'teacher.pth', faster_rcnn()))
    losses = []
    for more in ({}, options):
        torch.manual_seed(0)
        distiller = MODELS.build(
            dict(
                type='Distiller',
                student=faster_rcnn(),
                teacher=dict(config=dict(model=faster_rcnn()), checkpoint=checkpoint, **more),
                losses=dict(loss_kd=dict(type='MSE', student='neck')),
                classes=CLASSES,
            )
        )
        distiller.init_weights()
        data = distiller.data_preprocessor(batch(), True)
        losses.append(distiller.train()(**data, mode='loss')['loss_kd'])
    assert torch.equal(*losses)
    (key,) = options
    (warning,) = [each for each in warnings if 'ignored' in each]
    assert f'teacher.{key}: ignored' in warning and '\n' not in warning
