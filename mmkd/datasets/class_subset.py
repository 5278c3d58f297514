"""Some of a data set's classes: images that show them, and a share of those that do not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config

from ..errors import ConfigError, did_you_mean

# Larger files take many seconds to read, and are read by the data set anyway.
_LARGEST_FILE = 100e6  # bytes


@DATASETS.register_module()
class ClassSubsetDataset(CocoDataset):
    """A COCO data set of chosen classes that keeps some images of none of them.

    ``CocoDataset`` with ``metainfo=dict(classes=…)`` keeps all images without the classes or none,
    by its ``filter_empty_gt``. A detector that is trained on none of them has never seen a scene
    without its classes; with all of them, most of what it sees is empty.

    Args:
        empty_images: How many images of none of the classes are kept, as a share of those that show
            one. They are spread evenly over the annotation file.
        args, kwargs: Those of ``CocoDataset``.

    Raises:
        ConfigError: A negative share, or no image shows one of the classes.
    """

    def __init__(self, *args: Any, empty_images: float = 0.0, **kwargs: Any) -> None:
        if empty_images < 0:
            raise ConfigError(f'empty_images={empty_images} must not be negative')
        self.empty_images = empty_images
        super().__init__(*args, **kwargs)

    def filter_data(self) -> list[dict]:
        if self.test_mode:
            return super().filter_data()
        every: Any = self.filter_cfg  # type: ignore[has-type]  # of mmengine's BaseDataset
        config = dict(every or {})
        try:
            self.filter_cfg = dict(config, filter_empty_gt=True)
            shown = super().filter_data()
            self.filter_cfg = dict(config, filter_empty_gt=False)
            kept = super().filter_data()
        finally:
            self.filter_cfg = every
        if not shown:
            raise ConfigError(
                f'no image of {self.ann_file} shows {" or ".join(self.metainfo["classes"])}; choose '
                f'other classes in metainfo.classes'
            )
        ids = {image['img_id'] for image in shown}
        empty = [image for image in kept if image['img_id'] not in ids]
        count = min(round(self.empty_images * len(shown)), len(empty))
        chosen = ids | {empty[i * len(empty) // count]['img_id'] for i in range(count)}
        return [image for image in kept if image['img_id'] in chosen]


def check_classes(cfg: Config, modes: Sequence[str]) -> None:
    """Check that the classes a config chooses are those its labels will mean.

    A class that the annotation file does not have is passed over by MMDetection without a word, and
    labels are numbered by the file's order whatever the config's is.

    Args:
        cfg: A loaded config.
        modes: Which of ``'train'``, ``'val'`` and ``'test'`` are about to run.

    Raises:
        ConfigError: Unknown classes, another order than the file's, or no image to train on.
    """
    for mode in modes:
        if cfg.get(f'{mode}_cfg') is None:
            continue
        section = f'{mode}_dataloader'
        dataset = (cfg.get(section) or {}).get('dataset')
        for one, key in _coco_datasets(dataset, f'{section}.dataset'):
            classes = (one.get('metainfo') or {}).get('classes')
            if classes:
                _check(one, key, (classes,) if isinstance(classes, str) else tuple(classes))


def _coco_datasets(dataset: Any, key: str) -> Iterator[tuple[dict, str]]:
    if not isinstance(dataset, dict):
        return
    inner = dataset.get('datasets') or []
    inner = [*inner, *([dataset['dataset']] if 'dataset' in dataset else [])]
    for one in inner:
        yield from _coco_datasets(one, f'{key}.dataset')
    kind = dataset.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if isinstance(kind, type) and issubclass(kind, CocoDataset):
        yield dict(dataset, type=kind), key


def _check(dataset: dict, key: str, classes: tuple[str, ...]) -> None:
    path = os.path.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    content = None
    if os.path.isfile(path) and os.path.getsize(path) <= _LARGEST_FILE:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        names = [category['name'] for category in content['categories']]
        where = path
    else:
        names = list((getattr(dataset['type'], 'METAINFO', None) or {}).get('classes') or ())
        where = dataset['type'].__name__
        if not set(classes) <= set(names):
            return  # an annotation file with classes of its own, too large to be read here
    key = f'{key}.metainfo.classes'
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ConfigError(
            f'{key}: {where} has no class {", ".join(unknown)}{did_you_mean(unknown[0], names)}'
        )
    ordered = tuple(name for name in names if name in classes)
    if ordered != classes:
        raise ConfigError(
            f'{key}={classes} is not in the order of {where}, by which MMDetection numbers the labels; '
            f'write {ordered}'
        )
    if content is None or dataset.get('test_mode'):
        return
    ids = {category['id'] for category in content['categories'] if category['name'] in classes}
    filtered = (dataset.get('filter_cfg') or {}).get('filter_empty_gt')
    if filtered and not any(one['category_id'] in ids for one in content['annotations']):
        raise ConfigError(f'{key}: no image of {where} shows {" or ".join(classes)}')
