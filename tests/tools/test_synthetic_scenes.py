"""The embedded data set: the same again from the same seed, sound annotations, nothing half done."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from _synthetic_scenes import (
    CLASSES,
    SETTINGS_FILE,
    SceneSettings,
    draw_scene,
    is_complete,
    prepare_scenes,
)
from mmkd.errors import ConfigError

SETTINGS = SceneSettings(train=12, val=5, seed=3)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('drawn') / 'data'
    assert prepare_scenes(root, SETTINGS)
    return root


def _hashes(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def test_same_seed_draws_the_same_files(root, tmp_path):
    prepare_scenes(tmp_path / 'again', SETTINGS)
    assert _hashes(tmp_path / 'again') == _hashes(root)


def test_other_seed_draws_other_scenes(root, tmp_path):
    prepare_scenes(tmp_path / 'other', SceneSettings(train=12, val=5, seed=4))
    first, other = _hashes(root), _hashes(tmp_path / 'other')
    assert first.keys() == other.keys()
    assert not any(first[name] == other[name] for name in first)


def test_train_and_val_share_no_image(root):
    hashes = list(_hashes(root).values())
    assert len(set(hashes)) == len(hashes)


def test_longer_data_set_begins_with_the_shorter_one(root, tmp_path):
    prepare_scenes(tmp_path / 'longer', SceneSettings(train=14, val=6, seed=3))
    longer = _hashes(tmp_path / 'longer')
    images = {name: value for name, value in _hashes(root).items() if name.endswith('.jpg')}
    assert len(images) == 17
    assert all(longer[name] == value for name, value in images.items())


@pytest.mark.parametrize('split', ['train', 'val'])
def test_annotations_are_sound(root, split):
    coco = COCO(str(root / 'annotations' / f'{split}.json'))
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert len(coco.imgs) == getattr(SETTINGS, split)
    assert coco.anns
    for annotation in coco.anns.values():
        image = coco.imgs[annotation['image_id']]
        x, y, width, height = annotation['bbox']
        assert x >= 0 and y >= 0 and width > 0 and height > 0
        assert x + width <= image['width'] and y + height <= image['height']
        assert 0 < annotation['area'] <= width * height
        assert 0.4 < annotation['visible'] <= 1
        assert annotation['iscrowd'] == 0
    for image in coco.imgs.values():
        with Image.open(root / split / image['file_name']) as file:
            assert file.format == 'JPEG'
            assert file.size == (image['width'], image['height'])


def test_scenes_vary_in_what_makes_detection_hard():
    scenes = [draw_scene(np.random.default_rng([9, i])) for i in range(80)]
    objects = [thing for _, found in scenes for thing in found]
    assert {thing['category'] for thing in objects} == set(range(len(CLASSES)))
    sides = [max(thing['bbox'][2:]) for thing in objects]
    assert min(sides) < 24 and max(sides) > 48
    covered = [thing for thing in objects if thing['visible'] < 0.8]
    assert len(covered) > len(objects) / 10
    assert {image.shape for image, _ in scenes} == {(128, 160, 3), (160, 128, 3)}
    light = [image.mean() for image, _ in scenes]
    assert max(light) > 2 * min(light)


def test_boxes_hold_a_textured_surface():
    for seed in range(40):
        image, objects = draw_scene(np.random.default_rng([5, seed]))
        for thing in objects:
            x, y, width, height = thing['bbox']
            assert image[y : y + height, x : x + width].astype(float).std() > 5


def test_finished_data_set_is_left_alone(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert not prepare_scenes(root, SETTINGS)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob('*')}


def test_other_settings_replace_the_data_set(tmp_path):
    root = tmp_path / 'data'
    prepare_scenes(root, SceneSettings(train=3, val=1, seed=0))
    assert prepare_scenes(root, SceneSettings(train=2, val=1, seed=0))
    assert len(list((root / 'train').iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ['data']


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_interrupt_leaves_nothing_that_counts_as_complete(tmp_path, error):
    def stop(done, total):
        if done == 2:
            raise error

    root = tmp_path / 'data'
    settings = SceneSettings(train=4, val=1)
    with pytest.raises(error):
        prepare_scenes(root, settings, stop)
    assert not is_complete(root, settings)
    assert list(tmp_path.iterdir()) == []
    assert prepare_scenes(root, settings)
    assert is_complete(root, settings)


def test_interrupt_keeps_the_old_data_set(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    root, old = tmp_path / 'data', SceneSettings(train=2, val=1)
    prepare_scenes(root, old)
    with pytest.raises(KeyboardInterrupt):
        prepare_scenes(root, SceneSettings(train=3, val=1), stop)
    assert is_complete(root, old)


@pytest.mark.parametrize('lost', ['train/000001.jpg', 'annotations/val.json', SETTINGS_FILE])
def test_damaged_data_set_is_not_complete(tmp_path, lost):
    root, settings = tmp_path / 'data', SceneSettings(train=2, val=1)
    prepare_scenes(root, settings)
    (root / lost).unlink()
    assert not is_complete(root, settings)


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / 'thesis.txt').write_text('mine')
    with pytest.raises(ConfigError, match='other files'):
        prepare_scenes(tmp_path, SceneSettings(train=1, val=1))
    assert (tmp_path / 'thesis.txt').read_text() == 'mine'


@pytest.mark.parametrize('wrong', [{'train': 0}, {'val': 0}, {'seed': -1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SceneSettings(**wrong)


def test_settings_file_tells_the_settings(root):
    marker = json.loads((root / SETTINGS_FILE).read_text())
    assert (marker['train'], marker['val'], marker['seed']) == (12, 5, 3)
