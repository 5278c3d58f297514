"""Where the configs of Pascal VOC 2012 find images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_voc import write_voc

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def drawn_voc(tmp_path_factory):
    """Four images in VOC 2012's layout, each with a dog and a difficult tvmonitor."""
    return write_voc(tmp_path_factory.mktemp('VOCdevkit'))


@pytest.fixture(scope='module')
def photographs():
    """Pascal VOC 2012 itself, or a part of it."""
    for root in (os.environ.get('MMKD_VOC', ''), ROOT.parent / 'shared/data/VOCdevkit'):
        if root and (Path(root) / 'VOC2012/ImageSets/Main/val.txt').exists():
            return Path(root)
    pytest.skip('no Pascal VOC 2012 here: set MMKD_VOC to the folder that holds VOC2012/')


@pytest.fixture(params=['drawn_voc', 'photographs'])
def voc(request):
    return request.getfixturevalue(request.param)
