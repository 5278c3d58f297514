"""Running a tool as a user does, in the test's own process so that torch is imported only once."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import faster_rcnn
from tiny_training import training_config, write_coco

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """``tool('train', *arguments)`` runs tools/train.py in tmp_path; returns its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TOOLS))
    for name in ('CUDA_VISIBLE_DEVICES', 'LOCAL_RANK', 'MMKD_DEBUG'):
        monkeypatch.setenv(name, '')  # restored afterwards, whatever the tool does to it
        monkeypatch.delenv(name)

    def run(name: str, *arguments: object) -> int:
        script = TOOLS / f'{name}.py'
        monkeypatch.setattr(sys, 'argv', [str(script), *map(str, arguments)])
        try:
            runpy.run_path(str(script), run_name='__main__')
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


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
