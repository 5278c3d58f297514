"""Changes to a data set during a run: drop boxes without an area, and name images that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets import CocoDataset
from mmdet.registry import TRANSFORMS

from ..errors import ConfigError, MissingFileError


def has_area(instance: dict) -> bool:
    """Whether the box (x1, y1, x2, y2) of an instance has an area."""
    box = np.asarray(instance.get('bbox', ()), dtype=float)
    return box.size != 4 or bool(box[2] > box[0] and box[3] > box[1])


@TRANSFORMS.register_module()
class DropFlatBoxes(BaseTransform):
    """Drops objects with a box without width or height, before annotations are loaded.

    In MMDetection, such a box makes the box loss NaN.

    Examples:
        >>> from mmkd.datasets import DropFlatBoxes
        >>> objects = [dict(bbox=[4, 4, 20, 30]), dict(bbox=[8, 8, 8, 30])]
        >>> DropFlatBoxes()(dict(instances=objects))
        {'instances': [{'bbox': [4, 4, 20, 30]}]}
    """

    def transform(self, results: dict) -> dict:
        """Called by the pipeline with the data of one image; ``results['instances']`` is filtered."""
        if 'instances' in results:
            results['instances'] = [each for each in results['instances'] if has_area(each)]
        return results


def drop_flat_boxes(dataset: Any) -> list[str]:
    """Add :class:`DropFlatBoxes` to the pipeline of a data set that contains such boxes.

    Args:
        dataset: A built data set without wrappers. ``CocoDataset`` is not changed, as it drops these
            boxes itself.

    Returns:
        The image path of each box without an area.
    """
    if isinstance(dataset, CocoDataset) or dataset.test_mode:
        return []
    if any(isinstance(step, DropFlatBoxes) for step in dataset.pipeline.transforms):
        return []
    images = (dataset.get_data_info(index) for index in range(len(dataset)))
    flat = [
        image.get('img_path', '?')
        for image in images
        for each in image.get('instances', ())
        if not has_area(each)
    ]
    if flat:
        dataset.pipeline.transforms.insert(0, DropFlatBoxes())
    return flat


class _PrepareData:
    """``prepare_data`` of a data set, with the image path in its errors."""

    def __init__(self, prepare: Callable[[int], Any], dataset: Any) -> None:
        self.prepare, self.dataset = prepare, dataset

    def __call__(self, index: int) -> Any:
        try:
            return self.prepare(index)
        except Exception as error:  # pipelines raise many kinds
            info = self.dataset.get_data_info(index)
            path = info.get('img_path')
            if not isinstance(path, str) or '://' in path or self.dataset.backend_args:
                raise
            listed_in = self.dataset.ann_file
            if not os.path.isfile(path):
                raise MissingFileError(
                    f'{listed_in}: no such image: {path}; add the file, or remove it from the list'
                ) from error
            if not _is_readable(path):
                raise ConfigError(
                    f'{listed_in}: {path} is empty or cannot be read; replace the file, or remove it from '
                    f'the list'
                ) from error
            raise


def _is_readable(path: str) -> bool:
    try:
        return mmcv.imread(path) is not None
    except Exception:  # decoders raise many kinds
        return False


def name_failing_images(dataset: Any) -> None:
    """Make a data set raise a ``UserError`` that names an image if it is missing or cannot be read."""
    if not isinstance(dataset.prepare_data, _PrepareData):
        dataset.prepare_data = _PrepareData(dataset.prepare_data, dataset)
