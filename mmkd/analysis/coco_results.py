"""Ground truth and detections in COCO format, from data sets and detectors or from files."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.dataset import BaseDataset
from mmengine.fileio import get_local_path

from ..errors import ConfigError, MissingFileError, did_you_mean
from ..preflight.coco_file import read_coco
from ..visualization import Boxes

KEYS = ('image_id', 'category_id', 'bbox', 'score')


@dataclass(frozen=True)
class Truth:
    """The ground truth of a data set.

    Attributes:
        coco: Images and objects.
        categories: Ids of the evaluated classes, in the order of labels.
        images: Ids of the evaluated images, in the order of the data set.
    """

    coco: COCO
    categories: list[int]
    images: list[int]


def truth_of(dataset: BaseDataset) -> Truth:
    """The ground truth of a data set, as in mmdet's CocoMetric.

    Args:
        dataset: A detection data set. The annotation file of a CocoDataset is read again, as the data set
            itself does not keep the areas of segmentations.
    """
    images = [dataset.get_data_info(i) for i in range(len(dataset))]
    with contextlib.redirect_stdout(io.StringIO()):
        if isinstance(dataset, CocoDataset):
            with get_local_path(dataset.ann_file, backend_args=dataset.backend_args) as path:
                coco = COCO(path)
            return Truth(coco, list(dataset.cat_ids), [image['img_id'] for image in images])
        coco = COCO()
        coco.dataset = _as_coco(images, dataset.metainfo['classes'])
        coco.createIndex()
    return Truth(coco, coco.getCatIds(), list(range(len(images))))


def _as_coco(images: Iterable[dict[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    entries = []
    for index, image in enumerate(images):
        entries.append(dict(id=index, file_name=str(image.get('img_path'))))
        for instance in image.get('instances') or []:
            x1, y1, x2, y2 = map(float, instance['bbox'])
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index,
                    category_id=int(instance['bbox_label']),
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                    iscrowd=int(instance.get('ignore_flag', 0)),
                )
            )
    names = [dict(id=label, name=name) for label, name in enumerate(classes)]
    return dict(info={}, images=entries, annotations=annotations, categories=names)


def results_of(found: Iterable[Boxes], truth: Truth) -> list[dict[str, Any]]:
    """Detections in COCO format.

    Args:
        found: Boxes per image of ``truth``, in the same order.
        truth: The ground truth with the ids of images and classes.
    """
    results = []
    for image, boxes in zip(truth.images, found, strict=True):
        assert boxes.scores is not None
        for (x1, y1, x2, y2), label, score in zip(
            boxes.boxes.tolist(), boxes.labels.tolist(), boxes.scores.tolist(), strict=True
        ):
            results.append(
                dict(
                    image_id=image,
                    category_id=truth.categories[label],
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    score=score,
                )
            )
    return results


def read_truth(path: str, classes: Sequence[str] | None = None) -> Truth:
    """The ground truth of an annotation file.

    Args:
        path: A file in COCO format.
        classes: Names of the evaluated classes; all by default.

    Raises:
        UserError: The file is not in COCO format, or lacks a class.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'--ann-file: no such file: {path}; name an existing COCO file')
    known = {each['name']: each['id'] for each in read_coco(path)['categories']}
    for name in classes or ():
        if name not in known:
            raise ConfigError(
                f'--classes: must be classes of {path}, got {name!r}{did_you_mean(name, known)}'
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
    categories = [known[name] for name in classes] if classes else sorted(known.values())
    return Truth(coco, categories, coco.getImgIds())


def read_results(path: str, truth: Truth) -> list[dict[str, Any]]:
    """The detections of a result file, for the evaluated classes.

    Args:
        path: A JSON file in the format of COCO results, written by ``CocoMetric(outfile_prefix=…)`` or
            ``predict``.
        truth: The ground truth to which the ids in the file belong.

    Raises:
        UserError: The file has another format, or belongs to another annotation file.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'{path}: no such file; name a work directory or a result file')
    try:
        results = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ConfigError(f'{path} is not a JSON file: {error}') from None
    if not isinstance(results, list) or not all(
        isinstance(each, dict) and each.keys() >= {*KEYS} for each in results
    ):
        raise ConfigError(
            f'{path}: must be a list of detections with {", ".join(KEYS)}, got another format; name the file '
            f'<prefix>.bbox.json of CocoMetric(outfile_prefix=…), or predictions.json of predict'
        )
    advice = 'name the annotation file of these results'
    for each in results:
        image = truth.coco.imgs.get(each['image_id'])
        category = truth.coco.cats.get(each['category_id'])
        for key, entry in (('image_id', image), ('category_id', category)):
            if entry is None:
                raise ConfigError(
                    f'{path}: {key} must be in --ann-file, got {each[key]!r}; {advice}'
                )
        # `predict` also writes names. Without an annotation file, its ids count from 1, so names may differ.
        name = os.path.basename(image['file_name'])
        if os.path.basename(each.get('file_name', name)) != name:
            raise ConfigError(
                f'{path}: image_id {each["image_id"]} must be {name} as in --ann-file, got '
                f'{each["file_name"]}; run predict with --ann-file'
            )
        if each.get('category', category['name']) != category['name']:
            raise ConfigError(
                f'{path}: category_id {each["category_id"]} must be {category["name"]} as in --ann-file, '
                f'got {each["category"]}; run predict with --ann-file'
            )
    counted = {*truth.categories}
    return [each for each in results if each['category_id'] in counted]
