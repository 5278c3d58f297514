"""Rows of a report: accuracy and cost of training runs, gain of distillation, and closed gap to the teacher.

:mod:`mmkd.analysis.pairing` finds the teacher and the baseline of each run.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope

from ..errors import ConfigError
from ..f1_metric import evaluate
from ..preflight import PlannedRun, require
from .complexity import (
    Complexity,
    build_test_data,
    load_detector,
    measure,
    time_in_turns,
)
from .statistics import difference, gap_closed, interval
from .work_dir import METRICS, WorkDir, read_work_dir

ROLES = ('teacher', 'baseline', 'distilled', 'other')


@dataclass(eq=False)
class Row:
    """Training runs of one config with different seeds.

    Attributes:
        runs: At least one.
        name: Name of the folder, or the common part of the names of all folders.
        role: One of :data:`ROLES`.
        teacher: The teacher of a distilled student.
        baseline: The same student, trained without distillation.
        comparable: Whether it is validated on the same images and classes as its teacher.
        cost: Cost of the deployed detector, with the checkpoint of the first run.
        notes: Notes for the reader.
    """

    runs: list[WorkDir]
    name: str = ''
    role: str = 'other'
    teacher: Row | None = None
    baseline: Row | None = None
    comparable: bool = True
    cost: Complexity | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def first(self) -> WorkDir:
        """The first run."""
        return self.runs[0]

    @property
    def finished(self) -> bool:
        """Whether the runs are finished; an unfinished run has a row of its own."""
        return self.first.finished

    def values(self, metric: str) -> list[float] | None:
        """A metric of each run, in 0..1; ``None`` if one of them lacks it."""
        values = [run.scores[metric] for run in self.runs if metric in run.scores]
        return values if len(values) == len(self.runs) else None

    def mean(self, metric: str) -> float | None:
        """The mean of a metric over the runs, in 0..1; ``None`` if one of them lacks it."""
        values = self.values(metric)
        return None if values is None else interval(values)[0]

    def gain(self) -> tuple[float, float] | None:
        """mAP above the baseline, in 0..1, and half of its 95 % interval (see :func:`difference`).

        The interval is nan if one of the two has a single run.
        """
        ours = self.values('mAP')
        theirs = self.baseline.values('mAP') if self.baseline else None
        if self.baseline is None or ours is None or theirs is None:
            return None
        found = difference(ours, theirs)
        return found.mean, found.half

    def gap_closed(self) -> float | None:
        """The gain divided by the difference of teacher and baseline; see :func:`statistics.gap_closed`."""
        means = [row and row.mean('mAP') for row in (self.teacher, self.baseline, self)]
        known = [mean for mean in means if isinstance(mean, float)]
        return gap_closed(*known) if self.comparable and len(known) == 3 else None


def read_rows(paths: Iterable[str | os.PathLike[str]], best: bool = False) -> list[Row]:
    """Read work directories; runs of one config with several seeds form one row.

    Args:
        paths: Work directories; repeated ones are ignored.
        best: Use the best epoch of each run instead of the last.

    Raises:
        UserError: A folder is not a work directory, or two runs have the same config and seed.
    """
    runs = [read_work_dir(path, best) for path in {Path(p).resolve(): p for p in paths}.values()]
    rows = _grouped(runs)
    _name(rows)
    return rows


def _grouped(runs: list[WorkDir]) -> list[Row]:
    """Group finished runs with the same recipe into rows."""
    rows: list[tuple[Any, Row]] = []
    for run in runs:
        recipe = run.recipe() if run.finished and run.trained is not None else None
        for known, row in rows:
            if recipe is not None and known == recipe:
                twin = next(
                    (r for r in row.runs if r.seed is not None and r.seed == run.seed), None
                )
                if twin is not None:
                    raise ConfigError(
                        f'{twin.path} and {run.path} are the same run: same config and seed {run.seed}; name '
                        f'one of them'
                    )
                row.runs.append(run)
                break
        else:
            rows.append((recipe, Row([run])))
    for _, row in rows:
        notes = [(run, note) for run in row.runs for note in run.notes]
        row.notes += [f'{run.path.name}: {n}' if len(row.runs) > 1 else n for run, n in notes]
        if not row.finished:
            run = row.first
            row.notes.append(f'unfinished: {run.unit} {run.trained} of {run.length}')
    return [row for _, row in rows]


def _name(rows: list[Row]) -> None:
    """Name rows after their folders, or if two have the same name, after their paths."""
    for row in rows:
        names = [run.path.resolve().name for run in row.runs]
        shared = os.path.commonprefix(names) if len(names) > 1 else names[0]
        if len(names) > 1:
            shared = re.sub(r'[-_.]*(seed)?[-_.]*\d*$', '', shared) or (row.first.names or names)[0]
        row.name = shared
    names = [row.name for row in rows]
    for row in rows:
        if names.count(row.name) > 1:
            row.name = str(row.first.path)


# ------------------------------------------------------------------------------------ measurements


def add_f1(row: Row) -> None:
    """Evaluate each run with a missing metric on its validation images.

    Raises:
        UserError: The images do not exist, or the run is not evaluated with a COCO metric.
    """
    for run in row.runs:
        absent = [name for name in METRICS if name not in run.scores]
        if not absent or run.checkpoint is None or not row.finished:
            continue
        config, part = run.deployed(), run.part
        require(PlannedRun(config, (part,), path=str(run.path)), only=('data files', 'annotations'))
        model = load_detector(config, run.checkpoint)
        data = build_test_data(config, f'{part}_dataloader')
        scores = evaluate(model, data, config[f'{part}_evaluator'])
        run.scores |= {name: scores[METRICS[name]] for name in absent if METRICS[name] in scores}
        prefix = f'{run.path.name}: ' if len(row.runs) > 1 else ''
        row.notes.append(f'{prefix}{", ".join(absent)} evaluated for this report')


def add_costs(rows: Iterable[Row], image_size: tuple[int, int], timed: bool = True) -> None:
    """Measure the cost of the deployed detectors, without teachers.

    Args:
        rows: ``cost`` is set for rows with a checkpoint.
        image_size: Height and width of the image before the test pipelines, px.
        timed: Whether to time them. All are timed in turns, so other load affects all alike.
    """
    rows = [row for row in rows if row.first.checkpoint is not None and row.finished]
    models, inputs = [], []
    for row in rows:
        config = row.first.deployed()
        models.append(load_detector(config, row.first.checkpoint))
        inputs.append(_test_input(config, image_size))
        row.cost = measure(models[-1], [inputs[-1]], timed=False)
    if timed:
        times = time_in_turns(models, [pseudo_collate([one]) for one in inputs])
        for row, seconds in zip(rows, times, strict=True):
            if row.cost is not None:
                row.cost = replace(row.cost, ms_per_image=1000 * seconds)


def _test_input(config: Any, size: tuple[int, int]) -> dict:
    """The output of the test pipeline for a noise image."""
    dataset = config.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    with TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope('mmdet'):
        file = Path(folder) / 'noise.png'
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(file), noise)
        info = dict(img_path=str(file), img_id=0, height=size[0], width=size[1], instances=[])
        return Compose(copy.deepcopy(dataset.pipeline))(info)
