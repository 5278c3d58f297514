"""What is added to a data set as it is used: flat boxes are dropped, and images that fail are named."""

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
    """Whether the box of an instance (x1, y1, x2, y2) has an area."""
    box = np.asarray(instance.get('bbox', ()), dtype=float)
    return box.size != 4 or bool(box[2] > box[0] and box[3] > box[1])


@TRANSFORMS.register_module()
class DropFlatBoxes(BaseTransform):
    """Drops objects whose box has no width or no height, before annotations are loaded.

    Trained on, such a box makes the box loss NaN in MMDetection.
    """

    def transform(self, results: dict) -> dict:
        if 'instances' in results:
            results['instances'] = [each for each in results['instances'] if has_area(each)]
        return results


def drop_flat_boxes(dataset: Any) -> list[str]:
    """Add :class:`DropFlatBoxes` to the pipeline of a data set that has such boxes.

    Args:
        dataset: A data set as it is used, not a wrapper. ``CocoDataset`` drops them itself.

    Returns:
        The image of each flat box.
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


class _NamedImages:
    """``prepare_data`` of a data set, with the image's path in what it raises."""

    def __init__(self, prepare: Callable[[int], Any], dataset: Any) -> None:
        self.prepare, self.dataset = prepare, dataset

    def __call__(self, index: int) -> Any:
        try:
            return self.prepare(index)
        except Exception as error:  # whatever a pipeline raises
            info = self.dataset.get_data_info(index)
            path = info.get('img_path')
            if not isinstance(path, str) or '://' in path or self.dataset.backend_args:
                raise
            where = f'in {self.dataset.ann_file}'
            if not os.path.isfile(path):
                raise MissingFileError(
                    f'no such image: {path}, {where}; add the file, or take it out of there'
                ) from error
            if not _is_readable(path):
                raise ConfigError(
                    f'{path} is empty or cannot be read, {where}; replace the file, or take it out of there'
                ) from error
            raise


def _is_readable(path: str) -> bool:
    try:
        return mmcv.imread(path) is not None
    except Exception:  # decoders raise many kinds
        return False


def name_failing_images(dataset: Any) -> None:
    """Let a data set raise a :class:`UserError` that names an image which is missing or cannot be read."""
    if not isinstance(dataset.prepare_data, _NamedImages):
        dataset.prepare_data = _NamedImages(dataset.prepare_data, dataset)
