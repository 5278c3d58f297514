"""Load the detectors of work directories, to run them on their common validation images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.model import BaseModel

from ..errors import ConfigError
from ..preflight import PlannedRun, require
from ..teachers import CACHE_OPTIONS, DeclaredTeachers, LiveTeacher
from ..visualization import Boxes, image_path, predicted_boxes
from .comparison import Compared
from .complexity import build_test_data, load_detector
from .work_dir import WorkDir, latest_checkpoint, read_work_dir, titles_of


def read_detectors(
    paths: Sequence[str | os.PathLike[str]],
    names: Sequence[str] | None = None,
    best: bool = False,
    teachers: bool = False,
) -> list[Compared]:
    """The deployed detectors of work directories.

    Args:
        paths: Work directories.
        names: Their titles; by default the names of the folders.
        best: Use the epoch with the highest mAP instead of the last.
        teachers: Add the distinct teachers of distilled students, before the students.

    Raises:
        UserError: A folder is not a work directory or has no checkpoint, or two were validated on
            different images or classes.
    """
    names = titles_of(paths, names)
    runs = [read_work_dir(path, best) for path in paths]
    checkpoints = [latest_checkpoint(run) for run in runs]
    datasets = [_dataset(run) for run in runs]
    for path, dataset in zip(paths, datasets, strict=True):
        _require_same(dataset, datasets[0], path, paths[0])
    found = _teachers(runs, names, datasets) if teachers else []
    for run, name, checkpoint, dataset in zip(runs, names, checkpoints, datasets, strict=True):
        model = load_detector(run.deployed(), checkpoint)
        found.append(Compared(name, detect_with_model(model), dataset, run.score_thr))
    return found


def detect_with_model(model: BaseModel) -> Callable[[dict[str, Any]], Boxes]:
    """A function that returns the detections of a model in a batch of one image, with all scores."""
    return lambda batch: predicted_boxes(model.test_step(batch)[0])


def _dataset(run: WorkDir) -> BaseDataset:
    loader, config = f'{run.part}_dataloader', run.deployed()
    if not config.get(loader):
        raise ConfigError(
            f'{run.path}: its config has no {loader}, so there are no images; name another run'
        )
    require(PlannedRun(config, (run.part,), path=str(run.path)), only=('data files', 'annotations'))
    with redirect_stdout(StringIO()):  # pycocotools prints its progress
        return build_test_data(config, loader)


def _require_same(
    dataset: BaseDataset,
    other: BaseDataset,
    path: str | os.PathLike[str],
    other_path: str | os.PathLike[str],
) -> None:
    classes, others = (tuple(each.metainfo.get('classes') or ()) for each in (dataset, other))
    if classes != others:
        raise ConfigError(
            f'{path}: must have the classes of {other_path} ({_short(others)}), got {_short(classes)}; '
            f'compare runs of the same classes'
        )
    if dataset is other:
        return
    # Compare names only, as the data folders of two machines may differ.
    images, other_images = (
        [os.path.basename(image_path(each, i)) for i in range(len(each))]
        for each in (dataset, other)
    )
    if images != other_images:
        raise ConfigError(
            f'{path}: must be validated on the {len(other_images)} images of {other_path}, got '
            f'{len(images)} other images; compare runs of the same data set'
        )


def _short(names: Sequence[str]) -> str:
    return f'{", ".join(names[:5])}{", …" if len(names) > 5 else ""}'


def _teachers(
    runs: Sequence[WorkDir], names: Sequence[str], datasets: Sequence[BaseDataset]
) -> list[Compared]:
    """The distinct teachers of the distilled runs."""
    found: dict[tuple[str, str], Compared] = {}
    distilled = [each for each in zip(runs, names, datasets, strict=True) if each[0].distilled]
    if not distilled:
        raise ConfigError(
            '--teacher: needs a distilled run, got none; name a work directory with model.type Distiller'
        )
    for run, name, dataset in distilled:
        for teacher in _live_teachers(run.config, name):
            key = (str(teacher.model_config), str(teacher.checkpoint))
            # The same teacher in two runs counts once, even if they test on different image sizes.
            if key not in found:
                detect = detect_with_teacher(teacher, dataset, run.config.model.get('class_map'))
                found[key] = Compared('teacher', detect, dataset)
    several = len(found) > 1
    for number, each in enumerate(found.values(), 1):
        each.name = f'teacher {number}' if several else each.name
    if any(each.name in names for each in found.values()):
        raise ConfigError(
            "--names: must not be 'teacher' with --teacher, as the teacher's column has that title; write "
            'another name'
        )
    return list(found.values())


def _live_teachers(config: Config, name: str) -> list[LiveTeacher]:
    declared = DeclaredTeachers(config.model.get('teacher'), config.model.get('teachers'), {})
    found = []
    for each in declared.configs:
        key = declared.config_key(each)
        options = declared.configs[each]
        if not {'config', 'checkpoint'} <= options.keys():
            raise ConfigError(
                f'--teacher: {name}: model.{key} must have a config and a checkpoint, got '
                f'{", ".join(options)}; remove --teacher'
            )
        options = {k: v for k, v in options.items() if k not in CACHE_OPTIONS}
        teacher = LiveTeacher(name=key, **options)
        teacher.detector.to(get_device())
        found.append(teacher)
    return found


def detect_with_teacher(
    teacher: LiveTeacher, dataset: BaseDataset, class_map: dict[str, Any] | None
) -> Callable[[dict[str, Any]], Boxes]:
    """A function that returns a teacher's detections in a batch of one image, with labels of a data set.

    Raises:
        ConfigError: The class names of the teacher are not known.
    """
    labels = teacher.shared_labels(dataset.metainfo.get('classes') or (), class_map)
    return lambda batch: predicted_boxes(teacher.predict(batch)[0]).relabelled(labels)
