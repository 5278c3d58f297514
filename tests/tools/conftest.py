"""A config for the tools to run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import faster_rcnn
from tiny_training import training_config, write_coco


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The file of a plain mmdet config: a tiny detector, eight images, two iterations."""
    data = write_coco(tmp_path / 'data')
    cfg = training_config(faster_rcnn(), data, tmp_path / 'unused', iters=2)
    cfg.pop('work_dir')
    cfg.data_root = f'{data}/'
    path = tmp_path / 'tiny.py'
    cfg.dump(str(path))
    return path
