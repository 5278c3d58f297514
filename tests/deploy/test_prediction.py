"""Predictions for files and folders."""

from __future__ import annotations

import json
import shutil
import warnings

import mmcv
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from pycocotools.coco import COCO

from mmkd.deploy import find_images
from mmkd.errors import MissingFileError

CPU = ('--device', 'cpu')


@pytest.fixture
def given(trained, tmp_path):
    shutil.copytree(trained / 'data', tmp_path / 'data')
    return trained / 'config.py', trained / 'work/iter_2.pth'


def test_images_are_drawn_and_results_are_those_of_the_detector(given, tool, tmp_path, capsys):
    assert tool('predict', *given, 'data', '--out', 'found', '--score-thr', 0.1, *CPU) == 0
    drawn = sorted(path.name for path in (tmp_path / 'found/images').iterdir())
    assert drawn == [f'{index}.jpg' for index in range(4)]
    original = mmcv.imread(str(tmp_path / 'data/images/0.png'))
    assert mmcv.imread(str(tmp_path / 'found/images/0.jpg')).shape == original.shape
    results = json.loads((tmp_path / 'found/predictions.json').read_text())
    assert f'{len(results)} predictions on 4 images' in capsys.readouterr().out
    detector = init_detector(str(given[0]), str(given[1]), device='cpu')
    expected = inference_detector(detector, str(tmp_path / 'data/images/0.png')).pred_instances
    own = [each for each in results if each['file_name'].endswith('/0.png')]
    assert len(own) == len(expected.scores) > 0
    for found, box, score, label in zip(
        own, expected.bboxes.tolist(), expected.scores.tolist(), expected.labels, strict=True
    ):
        x, y, width, height = found['bbox']
        assert [x, y, x + width, y + height] == pytest.approx(box, abs=0.02)
        assert found['score'] == pytest.approx(score, abs=1e-4)
        assert found['category'] == detector.dataset_meta['classes'][label]


def test_nothing_warns_of_what_is_not_used(given, tool):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        assert tool('predict', *given, 'data/images/0.png', '--out', 'found', *CPU) == 0
    texts = [str(each.message) for each in found]
    assert not [text for text in texts if 'palette' in text or 'Failed to add' in text]


def test_ids_are_those_of_an_annotation_file(given, tool, tmp_path):
    annotations = tmp_path / 'data/annotations.json'
    content = json.loads(annotations.read_text())
    for entry in content['categories']:
        entry['id'] += 10
    for entry in content['annotations']:
        entry['category_id'] += 10
    annotations.write_text(json.dumps(content))
    options = ('--out', 'found', '--ann-file', annotations)
    assert tool('predict', *given, 'data/images/2.png', *options, *CPU) == 0
    # pycocotools takes the file as results of that file.
    found = COCO(str(annotations)).loadRes(str(tmp_path / 'found/predictions.json'))
    assert set(found.getImgIds()) == {0, 1, 2, 3}
    assert {each['image_id'] for each in found.dataset['annotations']} == {2}
    assert {each['category_id'] for each in found.dataset['annotations']} <= {11, 12, 13}


def test_images_of_one_name_are_kept_apart(given, tool, tmp_path):
    (tmp_path / 'data/more').mkdir()
    shutil.copy(tmp_path / 'data/images/0.png', tmp_path / 'data/more/0.png')
    assert tool('predict', *given, 'data', '--out', 'found', *CPU) == 0
    assert len(list((tmp_path / 'found/images').iterdir())) == 5


def test_an_image_that_cannot_be_read_is_named_after_the_others(given, tool, tmp_path, capsys):
    (tmp_path / 'data/images/1.png').write_bytes(b'no image')
    assert tool('predict', *given, 'data', '--out', 'found', *CPU) == 2
    assert 'IMAGES: 1 of 4 cannot be read: data/images/1.png' in capsys.readouterr().err
    assert len(list((tmp_path / 'found/images').iterdir())) == 3


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (('nowhere.png',), 'IMAGES: no such file or folder: nowhere.png'),
        (('empty',), 'IMAGES: no image in empty'),
        (('data', '--score-thr', 2), '--score-thr: must be in [0, 1], got 2.0'),
        (('data', '--ann-file', 'none.json'), '--ann-file: no such file: none.json'),
        (
            ('extra.png', '--ann-file', 'data/annotations.json'),
            'must list all images, but does not list extra.png',
        ),
    ],
)
def test_wrong_arguments_are_one_line_and_nothing_is_written(
    given, tool, tmp_path, capsys, arguments, says
):
    (tmp_path / 'empty').mkdir()
    shutil.copy(tmp_path / 'data/images/0.png', tmp_path / 'extra.png')
    assert tool('predict', *given, *arguments, '--out', 'found', *CPU) == 2
    (line,) = [it for it in capsys.readouterr().err.splitlines() if it.startswith('mmkd: error')]
    assert says in line
    assert not (tmp_path / 'found').exists()


def test_weights_of_another_detector_are_refused(given, tool, tmp_path, capsys):
    torch.save(dict(state_dict={'a.weight': torch.zeros(2)}), tmp_path / 'other.pth')
    assert tool('predict', given[0], 'other.pth', 'data', '--out', 'found', *CPU) == 2
    assert 'checkpoint other.pth does not belong to this FasterRCNN' in capsys.readouterr().err
    assert not (tmp_path / 'found').exists()


def test_folders_are_searched_with_what_is_in_them(tmp_path):
    for name in ('b/2.JPG', 'a/1.png', 'a/notes.txt'):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = find_images([str(tmp_path / 'b/2.JPG'), str(tmp_path)])
    assert [path.removeprefix(f'{tmp_path}/') for path in found] == ['b/2.JPG', 'a/1.png']
    with pytest.raises(MissingFileError):
        find_images([])
