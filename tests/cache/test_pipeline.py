"""mmkd/cache/pipeline.py: which training pipelines can be followed."""

from __future__ import annotations

import copy

import pytest
from mmcv.transforms import BaseTransform
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hub import get_config
from tiny_models import CLASSES
from tiny_training import write_coco

from mmkd.cache.pipeline import (
    CHECKED_VIEWS,
    META_KEYS,
    PHOTOMETRIC,
    UNSUPPORTED,
    dataset_with_test_pipeline,
    image_names,
    pipeline_for_view,
    record_views,
    replace_pipeline,
    transforms_of,
)
from mmkd.cache.views import View
from mmkd.errors import ConfigError

LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
PACK = [dict(type='PackDetInputs')]
RESIZE = dict(type='Resize', scale=(128, 96), keep_ratio=True)
FLIP = dict(type='RandomFlip', prob=1.0)


@pytest.fixture
def coco(tmp_path) -> dict:
    """The config of a data set without a pipeline."""
    return dict(
        type='CocoDataset',
        data_root=str(write_coco(tmp_path / 'data', images=3)),
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES),
    )


def built(coco: dict, *transforms: dict):
    return DATASETS.build(dict(coco, pipeline=[*LOAD, *copy.deepcopy(transforms), *PACK]))


def empty(*transforms: dict):
    """A data set of no images with a pipeline."""
    pipeline = [*LOAD, *copy.deepcopy(transforms), *PACK]
    return BaseDataset(pipeline=pipeline, lazy_init=True, serialize_data=False)


def test_samples_tell_their_view(coco):
    dataset = built(coco, RESIZE, FLIP)
    assert 'homography_matrix' not in dataset[0]['data_samples'].metainfo
    record_views(dataset, 'teacher', photometric=False)
    sample = dataset[0]['data_samples']
    assert {*META_KEYS, 'img_shape', 'flip'} <= {*sample.metainfo}
    assert View.from_sample(sample).scale[0] < 0
    pack = list(transforms_of(dataset))[-1]
    before = pack.meta_keys
    record_views(dataset, 'teacher', photometric=False)  # once more, of another teacher
    assert pack.meta_keys == before


# What a transform needs to be built.
ARGUMENTS = {
    'Expand': dict(mean=[0, 0, 0]),
    'RandomCenterCropPad': dict(
        crop_size=(32, 32), mean=[0] * 3, std=[1] * 3, to_rgb=True, test_pad_mode=None
    ),
    'CutOut': dict(n_holes=1, cutout_shape=(4, 4)),
    'RandomErasing': dict(n_patches=1, ratio=0.2),
    'Corrupt': dict(corruption='fog'),
}


class Unheard(BaseTransform):
    """One's own, which may do anything."""

    transforms = ()

    def transform(self, results: dict) -> dict:
        return results


HERE = [name for name in PHOTOMETRIC if TRANSFORMS.get(name)]


@pytest.mark.parametrize('name', UNSUPPORTED)
def test_what_cannot_be_followed_names_itself(name):
    assert TRANSFORMS.get(name), 'mmdet has none of that name'
    transform = dict(type=name, **ARGUMENTS.get(name, {}))
    for photometric in (False, True):
        for nested in (
            transform,
            dict(type='RandomApply', transforms=[transform], prob=0.5),
            dict(type='RandomChoice', transforms=[[RESIZE], [RESIZE, transform]]),
            dict(type='RandomOrder', transforms=[RESIZE, transform]),
        ):
            with pytest.raises(
                ConfigError, match=rf'^teachers\.a\.cache: the training pipeline has {name}, which'
            ):
                record_views(empty(RESIZE, nested), 'teachers.a', photometric)


@pytest.mark.parametrize('name', HERE)
def test_recolouring_is_up_to_the_config(name):
    transform = dict(type=name, **ARGUMENTS.get(name, {}))
    if name == 'ColorTransform':
        transform.update(level=2)
    dataset = empty(RESIZE, transform)
    with pytest.raises(ConfigError, match=rf'{name}, which changes.*set teacher\.photometric=True'):
        record_views(dataset, 'teacher', photometric=False)
    record_views(dataset, 'teacher', photometric=True)


def test_known_names_are_names():
    assert 'PhotoMetricDistortion' in HERE
    assert 'YOLOXHSVRandomAug' in HERE
    assert len(HERE) >= 15


@pytest.mark.parametrize(
    'transform',
    [
        dict(type=Unheard),
        dict(type='CenterCrop', crop_size=(32, 32)),
        dict(type='RandAugment', aug_space=[[dict(type='Rotate')]], aug_num=1),
        dict(type='AutoAugment', policies=[[dict(type='Rotate')]]),
    ],
    ids=lambda each: str(each['type']),
)
def test_what_is_not_known_is_refused(transform):
    with pytest.raises(ConfigError, match='(Unheard|CenterCrop|Rotate)(, which| of the training)'):
        record_views(empty(RESIZE, transform), 'teacher', photometric=True)


@pytest.mark.parametrize(
    'transform',
    [
        dict(type='mmcv.RandomFlip', prob=1.0),
        dict(type='mmcv.Resize', scale=(64, 64)),
        dict(type='RandomResize', scale=(64, 64), ratio_range=(1, 2), resize_type='mmcv.Resize'),
    ],
    ids=lambda each: each['type'],
)
def test_transforms_of_mmcv_do_not_tell_what_they_did(transform):
    with pytest.raises(ConfigError, match=r"mmcv's (RandomFlip|Resize), .*use mmdet's, 'mmdet\."):
        record_views(empty(transform), 'teacher', photometric=False)


def test_pipelines_of_published_detectors(coco):
    """DETR's is a choice between two chains; Faster R-CNN's a resize and a flip; YOLOX's a mosaic."""
    for name in (
        'mmdet::detr/detr_r50_8xb2-150e_coco.py',
        'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        'mmdet::gfl/gfl_r50_fpn_ms-2x_coco.py',
    ):
        pipeline = get_config(name).train_dataloader.dataset.pipeline
        dataset = DATASETS.build(dict(coco, pipeline=pipeline))
        record_views(dataset, 'teacher', photometric=False)
        View.from_sample(dataset[0]['data_samples'])
    wrapped = get_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py').train_dataloader.dataset
    wrapped.dataset.update({key: coco[key] for key in ('data_root', 'ann_file', 'data_prefix')})
    dataset = DATASETS.build(wrapped)
    with pytest.raises(ConfigError, match='Mosaic, which mixes several images'):
        record_views(dataset, 'teacher', photometric=True)
    assert image_names(dataset) == ['0 0.png', '1 1.png', '2 2.png']


def test_data_sets_in_data_sets(coco):
    """Each pipeline is found, and each image called as the samples call it."""
    plain = dict(coco, pipeline=[*LOAD, RESIZE, *PACK])
    mixed = dict(
        type='MultiImageMixDataset',
        dataset=dict(coco, pipeline=LOAD),
        pipeline=[RESIZE, FLIP, *PACK],
    )
    repeated = dict(type='RepeatDataset', dataset=plain, times=2)
    for config, images in (
        (dict(type='ConcatDataset', datasets=[plain, plain]), 6),
        (dict(type='ConcatDataset', datasets=[plain, repeated]), 9),
        (mixed, 3),
        (repeated, 6),
        (dict(type='ClassBalancedDataset', dataset=plain, oversample_thr=0.5), 3),
    ):
        dataset = DATASETS.build(copy.deepcopy(config))
        record_views(dataset, 'teacher', photometric=False)
        names = image_names(dataset)
        assert len(names) == len(dataset) == images
        for index in range(images):
            sample = dataset[index]['data_samples']
            View.from_sample(sample)
            assert names[index] == f'{sample.img_id} {sample.img_id}.png'
        bad = replace_in(config, dict(type='Rotate'))
        with pytest.raises(ConfigError, match='has Rotate'):
            record_views(DATASETS.build(bad), 'teacher', photometric=False)


def replace_in(config: dict, transform: dict) -> dict:
    """The same with a transform more in the innermost pipeline."""
    config = copy.deepcopy(config)
    inner = config
    while 'pipeline' not in inner:
        inner = inner.get('dataset') or inner['datasets'][-1]
    inner['pipeline'].insert(-1, transform)
    return config


def test_the_teacher_sees_training_images_as_they_are_tested(coco):
    tested = [*LOAD[:1], dict(type='Resize', scale=(64, 64), keep_ratio=True), *PACK]
    train = dict(coco, pipeline=[*LOAD, RESIZE, FLIP, *PACK], filter_cfg=dict(filter_empty_gt=True))
    other = dict(type='CocoDataset', ann_file='other.json', pipeline=tested)
    for wrap in (
        lambda it: it,
        lambda it: dict(type='RepeatDataset', times=3, dataset=it),
        lambda it: dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=it),
        lambda it: dict(type='MultiImageMixDataset', dataset=it, pipeline=[dict(type='Mosaic')]),
    ):
        for loader in ('test_dataloader', 'val_dataloader'):
            cfg = Config(
                {'train_dataloader': dict(dataset=wrap(train)), loader: dict(dataset=other)}
            )
            assert dataset_with_test_pipeline(cfg).to_dict() == dict(train, pipeline=tested)
            assert cfg.train_dataloader.dataset.to_dict() == wrap(train)  # not changed
    wrapped = dict(type='ConcatDataset', datasets=[train, train])
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=wrapped),
            test_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[other])),
        )
    )
    assert [each.pipeline for each in dataset_with_test_pipeline(cfg).datasets] == [tested, tested]
    with pytest.raises(ConfigError, match='test_dataloader: not given'):
        dataset_with_test_pipeline(Config(dict(train_dataloader=dict(dataset=train))))


def test_views_that_are_checked_are_of_the_image_as_tested(coco):
    tested = [LOAD[0], RESIZE, *PACK]
    for name, view in CHECKED_VIEWS.items():
        dataset = DATASETS.build(
            dict(coco, pipeline=pipeline_for_view(tested, view), test_mode=True)
        )
        sample = dataset[0]['data_samples']
        told = View.from_sample(sample)
        assert (told.scale[0] < 0) == (name == 'flipped')
        assert set(META_KEYS[:3]) <= set(sample.metainfo)
        record_views(dataset, 'teacher', photometric=True)
    assert tested == [LOAD[0], RESIZE, *PACK]
    with pytest.raises(ConfigError, match='must end with PackDetInputs'):
        pipeline_for_view(tested[:-1], [])


def test_replace_pipeline_changes_every_pipeline(coco):
    config = dict(
        type='ConcatDataset', datasets=[dict(coco, pipeline=LOAD), dict(coco, pipeline=PACK)]
    )
    changed = replace_pipeline(config, lambda old: [*old, RESIZE])
    assert [len(each.pipeline) for each in changed.datasets] == [3, 2]
    assert [len(each['pipeline']) for each in config['datasets']] == [2, 1]
