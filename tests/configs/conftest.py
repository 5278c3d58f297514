"""Where the configs of Pascal VOC 2012 find images."""

from __future__ import annotations

import pytest
from real_files import real
from tiny_voc import write_voc


@pytest.fixture(scope='module')
def drawn_voc(tmp_path_factory):
    """Four images in VOC 2012's layout, each with a dog and a difficult tvmonitor."""
    return write_voc(tmp_path_factory.mktemp('VOCdevkit'))


@pytest.fixture(scope='module')
def photographs():
    """Pascal VOC 2012 itself, or a part of it."""
    return real('MMKD_VOC')


@pytest.fixture(params=['drawn_voc', 'photographs'])
def voc(request):
    return request.getfixturevalue(request.param)
