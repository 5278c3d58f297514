"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

# Tiny tensors: more threads cost time, most of all when something else runs beside the tests.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import yapf.yapflib.yapf_api  # noqa: E402

# Half of a tiny training run is yapf, which formats its config five times; unformatted it is the same Python.
# Before mmengine is imported, which may import it by name.
yapf.yapflib.yapf_api.FormatCode = lambda text, **options: (text, True)

import pytest  # noqa: E402
import torch  # noqa: E402
from mmengine.logging import MessageHub, MMLogger  # noqa: E402
from mmengine.registry import DefaultScope, init_default_scope  # noqa: E402
from mmengine.visualization import Visualizer  # noqa: E402

import mmkd  # noqa: E402, F401  (registers)
from mmkd.checkpoints import allow_training_checkpoints  # noqa: E402

TOOLS = Path(__file__).parents[1] / 'tools'
# What is imported stays; data sets let all of it be looked through each time they are built.
gc.freeze()
torch.set_num_threads(1)
allow_training_checkpoints()  # as the tools do


@pytest.fixture(autouse=True)
def clean_state():
    """Each test starts with mmdet's scope, no training in progress and the same random numbers."""
    init_default_scope('mmdet')
    MessageHub._instance_dict.clear()
    MMLogger.get_current_instance().setLevel('WARNING')  # every weight's initialisation is logged
    torch.manual_seed(0)
    yield
    MessageHub._instance_dict.clear()
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session')
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of work directories (:mod:`tiny_runs`), not to be changed."""
    from tiny_runs import make_runs

    return make_runs(tmp_path_factory.mktemp('runs'))


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """``tool('train', *arguments)`` runs tools/train.py in tmp_path; returns its exit code.

    It runs in the process of the test, so that torch is imported only once.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TOOLS))
    for name in ('CUDA_VISIBLE_DEVICES', 'LOCAL_RANK', 'MMKD_DEBUG'):
        monkeypatch.setenv(name, '')  # restored afterwards, whatever the tool does to it
        monkeypatch.delenv(name)

    def run(name: str, *arguments: object) -> int:
        script = TOOLS / f'{name}.py'
        # As in a new process: mmengine names what it keeps by the second, and two runs can share one.
        for kept in (MMLogger, MessageHub, Visualizer):
            kept._instance_dict.clear()
        monkeypatch.setattr(sys, 'argv', [str(script), *map(str, arguments)])
        try:
            runpy.run_path(str(script), run_name='__main__')
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run
