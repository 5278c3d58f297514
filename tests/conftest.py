"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

# Tiny tensors: more threads cost time, most of all when something else runs beside the tests.
os.environ.setdefault('OMP_NUM_THREADS', '1')


import pytest  # noqa: E402
import torch  # noqa: E402
from mmengine.logging import MessageHub, MMLogger  # noqa: E402
from mmengine.registry import DefaultScope, init_default_scope  # noqa: E402

import mmkd  # noqa: E402, F401  (registers)
from mmkd.checkpoints import allow_training_checkpoints  # noqa: E402

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
