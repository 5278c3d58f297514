"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope, init_default_scope

import mmkd  # noqa: F401  (registers)

REPOSITORY = Path(__file__).parents[1]


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
def shared() -> Path:
    """The folder with real images and weights, which are no part of the project."""
    folder = Path(os.environ.get('MMKD_SHARED', REPOSITORY.parent / 'shared'))
    if not (folder / 'data').is_dir():
        pytest.skip(f'no real data: neither $MMKD_SHARED nor {folder} holds data/')
    return folder
