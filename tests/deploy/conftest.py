"""A distilled student, trained once for all tests of a module."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_table import distil, sound_case
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_training import train


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """The folder of a distillation that was trained for two iterations: config.py, data/, work/."""
    folder = tmp_path_factory.mktemp('trained')
    case = sound_case(folder, 'coco')
    with DefaultScope.overwrite_default_scope('mmdet'):
        distil()(case)
    case.config.work_dir = str(folder / 'work')
    case.config.train_cfg.val_interval = 2
    case.config.model.student.test_cfg.rcnn.score_thr = 0.0
    case.config.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    case.write()
    train(Config.fromfile(str(folder / 'config.py')))
    return folder
