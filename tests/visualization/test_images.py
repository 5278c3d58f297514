"""Selection of the images of a data set."""

from __future__ import annotations

import pytest
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope
from tiny_training import training_config, write_coco

from mmkd.errors import ConfigError
from mmkd.visualization import find_indices, ground_truth, load_image, spread_indices


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    data = write_coco(tmp_path_factory.mktemp('data') / 'coco', images=6)
    config = training_config({}, data, data).val_dataloader.dataset
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(config)


def test_spread_indices_cover_the_data_set(dataset):
    assert spread_indices(dataset, count=2, objects=3) == [1, 4]
    assert len(spread_indices(dataset, count=100, objects=0)) == 6
    assert len(spread_indices(dataset, count=3, objects=99)) == 3  # no such images: any


def test_ground_truth_is_that_of_the_file_without_what_is_ignored(dataset, monkeypatch):
    instances = dataset.get_data_info(0)['instances']
    truth = ground_truth(dataset, 0)
    assert truth.boxes.tolist() == [instance['bbox'] for instance in instances]
    assert len(truth) == 3 and len(truth.ignored) == 0
    instances[1]['ignore_flag'] = 1
    monkeypatch.setattr(dataset, 'get_data_info', lambda index: dict(instances=instances))
    truth = ground_truth(dataset, 0)
    assert len(truth) == 2 and truth.ignored.boxes.tolist() == [instances[1]['bbox']]


def test_images_are_named_by_file_path_or_id(dataset, tmp_path):
    path = dataset.get_data_info(3)['img_path']
    for name in ('3.png', '3', 'images/3.png', './images/3', path):
        assert find_indices(dataset, [name], '--images') == [3]
    assert find_indices(dataset, ['4.png', '1', '4'], '--images') == [4, 1]
    (tmp_path / '3.png').touch()
    for name in ('77.png', str(tmp_path / '3.png')):
        with pytest.raises(ConfigError, match=f'--images: {name} is none of the 6 images'):
            find_indices(dataset, [name], '--images')


def test_an_image_is_as_it_is_stored(dataset):
    image = load_image(dataset, 0)
    assert image.shape == (96, 128, 3)
    x1, y1, x2, y2 = (int(each) for each in ground_truth(dataset, 0).boxes[2])
    assert (image[y1:y2, x1:x2, 2] == 240).all()  # the third class is blue: RGB
