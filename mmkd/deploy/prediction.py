"""A student's predictions for images, drawn and in COCO's form."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mmcv
import torch
from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config

from ..building import build_detector
from ..checkpoints import load_weights, read_checkpoint
from ..errors import ConfigError, MissingFileError
from ..hooks.student_config import has_student, student_config
from ..preflight.coco_file import read_coco
from ..preflight.images import can_be_decoded

ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


@dataclass(frozen=True)
class Predicted:
    """What was predicted.

    Attributes:
        images: Number of images.
        objects: Number of predictions.
        results: The file of predictions.
        unreadable: Images that could not be read.
    """

    images: int
    objects: int
    results: Path
    unreadable: list[str]


def find_images(paths: Sequence[str]) -> list[str]:
    """The images that files and folders name; folders are searched with all that is in them.

    Raises:
        MissingFileError: A path does not exist, or there is no image.
    """
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            inside = (
                os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
            )
            found += sorted(each for each in inside if each.lower().endswith(ENDINGS))
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise MissingFileError(
                f'IMAGES: no such file or folder: {path}; name images or folders'
            )
    if not found:
        raise MissingFileError(
            f'IMAGES: there is no image in {", ".join(paths)}; name other folders'
        )
    return list(dict.fromkeys(found))


def predict(
    config: Config,
    checkpoint: str,
    images: Sequence[str],
    out: str | os.PathLike[str],
    score_thr: float = 0.3,
    ann_file: str | None = None,
    device: str | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Predicted:
    """Run a student on images; write each with its boxes, and all predictions to ``predictions.json``.

    The file is a list in the form of COCO's results, with ``file_name`` and ``category`` beside the ids.

    Args:
        config: The config that it was trained with, of a distillation or a plain detector.
        checkpoint: Its checkpoint.
        images: Image files.
        out: Where to write.
        score_thr: The lowest score that is drawn; the file has all.
        ann_file: A file in COCO's form; its ids of images and categories are used. Without it both
            count from 1.
        device: As torch names it.
        progress: Wraps the images.

    Raises:
        ConfigError: ``ann_file`` lacks an image or a class.
        CheckpointError: The checkpoint does not belong to the config.
    """
    out = Path(out)
    plain = student_config(config) if has_student(config) else config
    where = f'checkpoint {checkpoint}'
    # mmdet's inferencer would go on with random weights where a checkpoint has others.
    detector = build_detector(plain.model, 'model', plain.get('default_scope') or 'mmdet')
    load_weights(detector, read_checkpoint(str(checkpoint), where), where)
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, 'student.py')
        plain.dump(path)
        with warnings.catch_warnings():
            # Of class colours and of the config's visualizer, neither of which is used.
            warnings.filterwarnings('ignore', message='palette does not exist|Failed to add')
            inferencer = DetInferencer(path, str(checkpoint), device=device, show_progress=False)
    # Whatever the config draws with while it trains.
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = inferencer.model.dataset_meta
    classes = tuple(inferencer.model.dataset_meta['classes'])
    image_ids, category_ids = _ids(ann_file, images, classes)
    drawn = _drawn_names(images)
    (out / 'images').mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for image in progress(images):
        try:
            sample = inferencer(image, return_datasamples=True, no_save_vis=True)['predictions'][0]
            pixels = mmcv.imread(image, channel_order='rgb')
        except Exception:  # of the decoder
            if os.path.isfile(image) and can_be_decoded(image):
                raise
            unreadable.append(image)
            continue
        visualizer.add_datasample(
            'prediction',
            pixels,
            sample.cpu(),
            draw_gt=False,
            pred_score_thr=score_thr,
            out_file=str(out / 'images' / drawn[image]),
        )
        for found in _of_sample(sample, classes, category_ids):
            results.append(dict(image_id=image_ids[image], file_name=image, **found))
    target = out / 'predictions.json'
    target.write_text(json.dumps(results) + '\n', encoding='utf-8')
    return Predicted(len(images) - len(unreadable), len(results), target, unreadable)


def _of_sample(
    sample: DetDataSample, classes: Sequence[str], category_ids: Sequence[int]
) -> Iterator[dict[str, Any]]:
    found = sample.pred_instances
    boxes = get_box_tensor(found.bboxes).cpu()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)  # x, y, width, height
    for box, score, label in zip(
        boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
    ):
        yield dict(
            category_id=category_ids[label],
            category=classes[label],
            bbox=[round(value, 2) for value in box],
            score=round(score, 5),
        )


def _ids(
    ann_file: str | None, images: Sequence[str], classes: Sequence[str]
) -> tuple[dict[str, int], list[int]]:
    """The id of each image and of each class."""
    if ann_file is None:
        return {path: index for index, path in enumerate(images, 1)}, [*range(1, len(classes) + 1)]
    if not os.path.isfile(ann_file):
        raise MissingFileError(f'--ann-file: no such file: {ann_file}')
    content = read_coco(ann_file)
    categories = {each['name']: each['id'] for each in content['categories']}
    absent = [name for name in classes if name not in categories]
    if absent:
        raise ConfigError(
            f'--ann-file: {ann_file} must have the classes of the student, got none called {absent[0]!r}'
        )
    by_name = {each['file_name']: each['id'] for each in content['images']}
    ids = {}
    for path in images:
        # The end of the path, as the file has it: with as many folders as there are.
        parts = Path(path).parts
        ends = ('/'.join(parts[index:]) for index in range(len(parts)))
        name = next((end for end in ends if end in by_name), None)
        if name is None:
            raise ConfigError(
                f'--ann-file: {ann_file} must list all images, got none called {path}'
            )
        ids[path] = by_name[name]
    return ids, [categories[name] for name in classes]


def _drawn_names(images: Sequence[str]) -> dict[str, str]:
    """A file name for each image; of those with one name in several folders the folders are part of it."""
    stems = [Path(path).stem for path in images]
    counts = Counter(stems)
    names = {}
    for path, stem in zip(images, stems, strict=True):
        if counts[stem] > 1:
            stem = '_'.join(Path(path).parts).strip('/_').replace('/', '_')
        names[path] = f'{stem}.jpg'
    return names
