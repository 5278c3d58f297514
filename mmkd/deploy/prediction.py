"""Predict on images with a trained student; write images with boxes and a file in COCO format."""

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

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


@dataclass(frozen=True)
class Predicted:
    """The result of :func:`predict`.

    Attributes:
        images: Number of images that were read.
        objects: Number of predictions.
        results: Path of the file with all predictions.
        unreadable: Paths of images that could not be read.

    Examples:
        >>> from pathlib import Path
        >>> from mmkd.deploy import Predicted
        >>> found = Predicted(images=2, objects=31, results=Path('out/predictions.json'), unreadable=[])
        >>> f'{found.objects} predictions on {found.images} images: {found.results}'
        '31 predictions on 2 images: out/predictions.json'
    """

    images: int
    objects: int
    results: Path
    unreadable: list[str]


def find_images(paths: Sequence[str]) -> list[str]:
    """The images among the given files and folders; folders are searched recursively.

    Raises:
        MissingFileError: A path does not exist, or no image is found.
    """
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            inside = (
                os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
            )
            found += sorted(each for each in inside if each.lower().endswith(EXTENSIONS))
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise MissingFileError(
                f'IMAGES: no such file or folder: {path}; name images or folders'
            )
    if not found:
        raise MissingFileError(f'IMAGES: no image in {", ".join(paths)}; name other folders')
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
    """Run a student on images; write each image with its boxes, and all predictions.

    ``predictions.json`` is a list in the format of COCO results, with additional keys ``file_name`` and
    ``category``.

    Args:
        config: The config of the training run, with or without distillation.
        checkpoint: The checkpoint of the student.
        images: Image files.
        out: The folder to write to.
        score_thr: Minimum score of drawn boxes; the file has boxes of all scores.
        ann_file: A COCO file with ids of images and categories to use. Without it, both count from 1.
        device: A torch device; None for the default.
        progress: Wraps the iteration over images, for a progress bar.

    Raises:
        ConfigError: ``ann_file`` lacks an image or a class.
        CheckpointError: The checkpoint does not match the config.
    """
    out = Path(out)
    plain = student_config(config) if has_student(config) else config
    where = f'checkpoint {checkpoint}'
    # mmdet's inferencer would keep random weights for keys that the checkpoint lacks; loading is strict here.
    detector = build_detector(plain.model, 'model', plain.get('default_scope') or 'mmdet')
    load_weights(detector, read_checkpoint(str(checkpoint), where), where)
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, 'student.py')
        plain.dump(path)
        with warnings.catch_warnings():
            # They concern class colours and the config's visualizer, which are not used.
            warnings.filterwarnings('ignore', message='palette does not exist|Failed to add')
            inferencer = DetInferencer(path, str(checkpoint), device=device, show_progress=False)
    # Not the visualizer of the config, which may have other backends.
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
        except Exception:  # decoders raise many kinds
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
        for found in _coco_results(sample, classes, category_ids):
            results.append(dict(image_id=image_ids[image], file_name=image, **found))
    target = out / 'predictions.json'
    target.write_text(json.dumps(results) + '\n', encoding='utf-8')
    return Predicted(len(images) - len(unreadable), len(results), target, unreadable)


def _coco_results(
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
        raise MissingFileError(f'--ann-file: no such file: {ann_file}; name an existing COCO file')
    content = read_coco(ann_file)
    categories = {each['name']: each['id'] for each in content['categories']}
    absent = [name for name in classes if name not in categories]
    if absent:
        raise ConfigError(
            f'--ann-file: {ann_file} must have all classes of the student, but has no {absent[0]!r}'
        )
    by_name = {each['file_name']: each['id'] for each in content['images']}
    ids = {}
    for path in images:
        # The longest last part of the path that is a file_name.
        parts = Path(path).parts
        ends = ('/'.join(parts[index:]) for index in range(len(parts)))
        name = next((end for end in ends if end in by_name), None)
        if name is None:
            raise ConfigError(
                f'--ann-file: {ann_file} must list all images, but does not list {path}'
            )
        ids[path] = by_name[name]
    return ids, [categories[name] for name in classes]


def _drawn_names(images: Sequence[str]) -> dict[str, str]:
    """A file name for each image; if several images have the same name, it includes their folders."""
    stems = [Path(path).stem for path in images]
    counts = Counter(stems)
    names = {}
    for path, stem in zip(images, stems, strict=True):
        if counts[stem] > 1:
            stem = '_'.join(Path(path).parts).strip('/_').replace('/', '_')
        names[path] = f'{stem}.jpg'
    return names
