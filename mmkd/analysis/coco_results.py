"""Ground truth and detections in COCO's form: of data sets and detectors, or read from files."""

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
    """What is to be found in a data set.

    Attributes:
        coco: Images and objects.
        categories: Ids of the classes that count, in the order of labels.
        images: Ids of the images that count, in their order.
    """

    coco: COCO
    categories: list[int]
    images: list[int]


def truth_of(dataset: BaseDataset) -> Truth:
    """What is to be found in the images of a data set, as mmdet's CocoMetric takes it.

    Args:
        dataset: A CocoDataset, whose annotation file is read again, as it has areas of outlines; or any other
            detection data set.
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
    """What a detector found, in COCO's form.

    Args:
        found: One per image of ``truth``, in its order.
        truth: Whose ids are used.
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
    """The images and objects of an annotation file.

    Args:
        path: A file in COCO's form.
        classes: Names of the classes that count; by default all.

    Raises:
        UserError: The file is none, or lacks a class.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'--ann-file: no such file: {path}')
    known = {each['name']: each['id'] for each in read_coco(path)['categories']}
    for name in classes or ():
        if name not in known:
            raise ConfigError(
                f'--classes: must be of {path}, got {name!r}{did_you_mean(name, known)}'
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
    categories = [known[name] for name in classes] if classes else sorted(known.values())
    return Truth(coco, categories, coco.getImgIds())


def read_results(path: str, truth: Truth) -> list[dict[str, Any]]:
    """The detections of a result file, of the classes that count.

    Args:
        path: A JSON file in the form of COCO's results, as ``CocoMetric(outfile_prefix=…)`` or ``predict``
            write it.
        truth: Whose images and classes it must name.

    Raises:
        UserError: It is no such file, or of another annotation file.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f'{path}: no such file; give a work directory or a file of results')
    try:
        results = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ConfigError(f'{path} is no JSON file: {error}') from None
    if not isinstance(results, list) or not all(
        isinstance(each, dict) and each.keys() >= {*KEYS} for each in results
    ):
        raise ConfigError(
            f'{path}: must be a list of detections with {", ".join(KEYS)}, got something else; give the file '
            f'that CocoMetric writes with outfile_prefix, <prefix>.bbox.json, or predict'
        )
    advice = 'give the annotation file that the results belong to'
    for each in results:
        image = truth.coco.imgs.get(each['image_id'])
        category = truth.coco.cats.get(each['category_id'])
        for key, entry in (('image_id', image), ('category_id', category)):
            if entry is None:
                raise ConfigError(
                    f'{path}: {key} must be of --ann-file, got {each[key]!r}; {advice}'
                )
        # Which `predict` writes beside the ids, that count from 1 where it was given no annotation file.
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
