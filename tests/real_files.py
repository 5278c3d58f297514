"""Photographs and trained weights, which are not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / 'shared'
# By variable: the folder beside the checkout, and what is in it.
FOLDERS = {
    'MMKD_VOC': ('data/VOCdevkit', 'VOC2012/ImageSets/Main/val.txt'),
    'MMKD_COCO': ('data/coco', 'annotations'),
    'MMKD_WEIGHTS': ('weights', ''),
}


def real(variable: str, file: str = '') -> Path:
    """A folder of :data:`FOLDERS`, or a file in it; the test is skipped where there is none.

    A variable that is set and names no such folder fails the test: what was asked for is not skipped.
    """
    folder, content = FOLDERS[variable]
    given = os.environ.get(variable)
    root = Path(given or SHARED / folder)
    path = root / (file or content)
    if path.exists():
        return root / file
    if given:
        pytest.fail(f'{variable}={given}: there is no {path}')
    pytest.skip(f'no {path.name} here; set {variable} to its folder')
