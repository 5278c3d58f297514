"""benchmarks/voc_animals.py, on a small Pascal VOC."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_voc import write_voc

SCRIPT = Path(__file__).parents[2] / 'benchmarks' / 'voc_animals.py'


@pytest.fixture
def run(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(SCRIPT), *map(str, arguments)])
        try:
            runpy.run_path(str(SCRIPT), run_name='__main__')
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


@pytest.fixture
def voc(tmp_path):
    """With names that are numbers, and one image of `val` that the studies use."""
    root = write_voc(tmp_path / 'voc')
    folder = root / 'VOC2012'
    for split, names in (
        ('train', ['2008_000008', '2008_000019']),
        ('val', ['2008_000009', '2008_000010']),
    ):
        old = (folder / f'ImageSets/Main/{split}.txt').read_text().split()
        for before, after in zip(old, names, strict=True):
            for kind, end in (('JPEGImages', 'jpg'), ('Annotations', 'xml')):
                (folder / kind / f'{before}.{end}').rename(folder / kind / f'{after}.{end}')
        (folder / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names))
    return root


def test_images_of_animals_are_scaled_with_their_boxes(run, voc, tmp_path):
    plain = voc / 'VOC2012/Annotations/2008_000019.xml'
    plain.write_text(plain.read_text().replace('dog', 'car'))
    assert run(voc, tmp_path / 'small') == 0
    folder = tmp_path / 'small/VOC2012'
    train, val = (
        json.loads((folder / f'annotations/instances_{split}.json').read_text())
        for split in ('train', 'val')
    )
    assert [each['file_name'] for each in train['images']] == ['2008_000008.jpg']  # no car
    assert [each['id'] for each in val['images']] == [2008000009]  # of val the listed ones
    assert Image.open(folder / 'JPEGImages/2008_000008.jpg').size == (320, 240)
    assert train['images'][0]['width'] == 320 and train['images'][0]['height'] == 240
    names = {each['id']: each['name'] for each in train['categories']}
    boxes = {names[each['category_id']]: each['bbox'] for each in train['annotations']}
    # 160 px became 320; 21 to 81, counted from 1, is 20 to 81 from 0.
    assert boxes == dict(dog=[40, 60, 122, 142], tvmonitor=[200, 20, 42, 42])


def test_mistakes_leave_what_is_there_as_it_is(run, voc, tmp_path, capsys):
    assert run(tmp_path / 'nowhere', tmp_path / 'small') == 2
    assert 'must contain Pascal VOC 2012' in capsys.readouterr().err
    assert not (tmp_path / 'small').exists()
    assert run(voc, voc) == 2
    assert 'already exists; choose an empty folder' in capsys.readouterr().err
