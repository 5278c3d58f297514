"""mmkd/datasets/class_subset.py."""

from __future__ import annotations

import json

import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config

from mmkd.errors import ConfigError
from mmkd.preflight import PlannedRun, require

NAMES = ('person', 'bicycle', 'dog')


@pytest.fixture
def data(tmp_path):
    """Ten images: the even ones show a bicycle, the first also a dog, the third a person."""
    annotations = [(index, 2) for index in range(0, 10, 2)] + [(0, 3), (2, 1)]
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=64, height=64) for i in range(10)],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(NAMES)],
        annotations=[
            dict(id=i, image_id=image, category_id=category, bbox=[1, 1, 9, 9], area=81, iscrowd=0)
            for i, (image, category) in enumerate(annotations)
        ],
    )
    (tmp_path / 'annotations.json').write_text(json.dumps(content))
    return tmp_path


def config(data, classes, kind='CocoDataset', **options):
    dataset = dict(
        type=kind,
        data_root=str(data),
        ann_file='annotations.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=classes),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[],
        **options,
    )
    return Config(dict(train_cfg=dict(), train_dataloader=dict(dataset=dataset)))


def check_classes(cfg, modes):
    names = ('annotations', 'class names', 'labels', 'classes agree', 'boxes', 'objects')
    require(PlannedRun(cfg, modes), only=names)


def images(cfg):
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    return [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]


@pytest.mark.parametrize(
    ('share', 'kept'),
    [
        (0.0, [0, 2]),
        (1.0, [0, 1, 2, 6]),  # the others are 1, 3, 4, 5, 6, 7, 8, 9: spread evenly
        (2.0, [0, 1, 2, 4, 6, 8]),
        (99, list(range(10))),
    ],
)
def test_a_share_of_the_other_images_is_kept(data, share, kept):
    cfg = config(data, ('person', 'dog'), 'ClassSubsetDataset', empty_images=share)
    assert images(cfg) == kept
    assert images(cfg) == kept


def test_small_images_are_left_out_and_testing_keeps_all(data):
    cfg = config(data, ('person', 'dog'), 'ClassSubsetDataset', empty_images=1.0)
    cfg.train_dataloader.dataset.filter_cfg.min_size = 65
    with pytest.raises(ConfigError, match='contains person or dog'):
        images(cfg)
    cfg.train_dataloader.dataset.test_mode = True
    assert len(images(cfg)) == 10


def test_without_images_of_the_classes_there_is_nothing_to_train_on(data):
    content = json.loads((data / 'annotations.json').read_text())
    content['annotations'] = content['annotations'][:5]
    (data / 'annotations.json').write_text(json.dumps(content))
    with pytest.raises(ConfigError, match='no image of .*annotations.json contains person or dog'):
        images(config(data, ('person', 'dog'), 'ClassSubsetDataset'))
    with pytest.raises(ConfigError, match='train_dataloader.*no image of .*contains person, dog'):
        check_classes(config(data, ('person', 'dog')), ['train'])
    check_classes(config(data, ('bicycle',)), ['train'])


def test_a_negative_share_is_refused(data):
    with pytest.raises(ConfigError, match='empty_images: must be at least 0, got -1'):
        images(config(data, NAMES, 'ClassSubsetDataset', empty_images=-1))


def test_a_class_the_file_does_not_have_is_named(data):
    with pytest.raises(
        ConfigError,
        match="train_dataloader.dataset.metainfo.classes: .*no class 'persn'; near: person",
    ):
        check_classes(config(data, ('persn', 'dog')), ['train'])
    check_classes(config(data, ('persn',)), ['val'])  # not about to run


def test_another_order_than_the_files_would_exchange_the_labels(data):
    cfg = config(data, ('dog', 'person'))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    (found,) = dataset.get_data_info(0)['instances'][-1:]
    assert found['bbox_label'] == 1  # a dog, in a data set whose first class is the dog
    with pytest.raises(ConfigError, match="write .'person', 'dog'."):
        check_classes(cfg, ['train'])


def test_wrapped_data_sets_are_checked(data):
    inner = config(data, ('persn',)).train_dataloader.dataset
    for wrapper in (
        dict(type='RepeatDataset', times=2, dataset=inner),
        dict(type='ConcatDataset', datasets=[inner]),
    ):
        cfg = Config(dict(train_cfg=dict(), train_dataloader=dict(dataset=wrapper)))
        with pytest.raises(ConfigError, match="no class 'persn'"):
            check_classes(cfg, ['train'])
