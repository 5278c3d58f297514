"""Images of a data set: their files, their ground truth, and the selection of images to show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mmcv
import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.fileio import get

from ..errors import ConfigError, did_you_mean
from .boxes import Boxes


def ground_truth(dataset: BaseDataset, index: int) -> Boxes:
    """The annotated boxes of one image; ignored objects are in ``ignored``.

    Args:
        dataset: Any detection data set.
        index: Index of the image in the data set.
    """
    instances = dataset.get_data_info(index).get('instances') or []
    counted = [instance for instance in instances if not instance.get('ignore_flag')]
    ignored = [instance for instance in instances if instance.get('ignore_flag')]
    return replace(_of_instances(counted), ignored=_of_instances(ignored))


def _of_instances(instances: list[dict]) -> Boxes:
    return Boxes(
        np.array([instance['bbox'] for instance in instances], dtype=float).reshape(-1, 4),
        np.array([instance['bbox_label'] for instance in instances], dtype=int),
    )


def load_image(dataset: BaseDataset, index: int) -> np.ndarray:
    """The original image, RGB, ``(H, W, 3)``.

    Args:
        dataset: Any detection data set.
        index: Index of the image in the data set.
    """
    content = get(
        dataset.get_data_info(index)['img_path'],
        backend_args=getattr(dataset, 'backend_args', None),
    )
    return mmcv.imfrombytes(content, channel_order='rgb')


def spread_indices(dataset: BaseDataset, count: int = 4, objects: int = 3) -> list[int]:
    """Indices of images with objects, spread evenly over a data set.

    Args:
        dataset: Any detection data set.
        count: Maximum number of images.
        objects: Minimum number of objects per image; ignored if no image has that many.
    """
    every = range(len(dataset))
    numbers = [len(ground_truth(dataset, i)) for i in every]
    full = [i for i in every if numbers[i] >= objects] or list(every)
    count = min(count, len(full))
    return [full[(2 * i + 1) * len(full) // (2 * count)] for i in range(count)]


def find_indices(dataset: BaseDataset, names: Sequence[str], key: str) -> list[int]:
    """Indices of the images with the given paths, file names or ids.

    Args:
        dataset: Any detection data set.
        names: Ids, or last parts of paths, with or without file extension.
        key: The option that contains the names, for messages.

    Raises:
        ConfigError: A name matches no image, or several.
    """
    known: dict[str, set[int]] = {}
    for index in range(len(dataset)):
        path = Path(image_path(dataset, index))
        for name in {*_names(path), os.path.realpath(path)}:
            known.setdefault(name, set()).add(index)
        known.setdefault(str(dataset.get_data_info(index).get('img_id')), set()).add(index)
    found: list[int] = []
    for name in names:
        indices = known.get(os.path.normpath(name)) or known.get(os.path.realpath(name))
        if not indices:
            raise ConfigError(
                f'{key}: {name} is none of the {len(dataset)} images of the data set'
                f'{did_you_mean(Path(name).name, known)}'
            )
        if len(indices) > 1:
            raise ConfigError(
                f'{key}: {name} matches {len(indices)} images; write a longer part of the path'
            )
        found += sorted(indices)
    return list(dict.fromkeys(found))


def _names(path: Path) -> set[str]:
    """All last parts of a path, with and without file extension."""
    parts, plain = path.parts, path.with_suffix('').parts
    return {'/'.join(each[i:]) for each in (parts, plain) for i in range(len(parts))}


def image_path(dataset: BaseDataset, index: int) -> str:
    """The path of an image of a data set."""
    return str(dataset.get_data_info(index)['img_path'])
