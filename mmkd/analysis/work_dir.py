"""Read the work directory of a training run: config, logged metrics, checkpoints."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import ConfigError, MissingFileError
from ..hooks import STUDENT_FILE

METRICS = {'mAP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50', 'F1': 'coco/bbox_F1'}
SCORE_THR = 'coco/bbox_F1_shared_threshold'
LOG, CONFIG = (
    'vis_data/scalars.json',
    'vis_data/config.py',
)  # in a folder named after the start time
#: Config keys that do not affect the trained weights: how data is read, and when it is validated.
NON_RECIPE_KEYS = (
    *('_scope_', 'palette', 'num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor'),
    *('val_interval', 'val_begin', 'dynamic_intervals'),
)
RECIPE_KEYS = (
    *('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr'),
    'custom_hooks',
)


@dataclass(eq=False)
class WorkDir:
    """One training run, or one test of existing weights.

    Attributes:
        path: The folder.
        config: The config of the run or test.
        names: Names of the config files in the folder.
        trained: Number of finished epochs or iterations; ``None`` for a test.
        length: Number of epochs or iterations in the config.
        unit: ``'epoch'`` or ``'iter'``.
        checkpoint: The checkpoint of the metrics; ``None`` if the file does not exist any more.
        scores: Metrics by the names of :data:`METRICS`, in 0..1; unknown ones are left out.
        score_thr: The single score threshold with the highest mean F1 over classes, if it was logged.
        records: The logged records, from :func:`read_scalars`.
        notes: Notes for the reader, one sentence each.
    """

    path: Path
    config: Config
    names: tuple[str, ...]
    trained: int | None = None
    length: int | None = None
    unit: str = 'epoch'
    checkpoint: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    score_thr: float | None = None
    records: list[dict] = field(default_factory=list, repr=False)
    notes: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether all epochs or iterations are done; always true for a test."""
        return self.trained is None or self.length is None or self.trained >= self.length

    @property
    def distilled(self) -> bool:
        """Whether the model is a ``Distiller``."""
        return self.config.model.type == 'Distiller'

    @property
    def seed(self) -> int | None:
        """The seed in the config; ``None`` if it has none."""
        return (self.config.get('randomness') or {}).get('seed')

    @property
    def part(self) -> str:
        """The part of the config on which metrics were measured: ``'val'``, or ``'test'`` for a test."""
        return 'test' if self.trained is None else 'val'

    def evaluated_on(self) -> dict[str, Any]:
        """The images, classes and labels of the metrics, for comparison with those of other runs."""
        evaluators = self.config.get(f'{self.part}_evaluator') or []
        evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
        parts = dict(
            dataset=(self.config.get(f'{self.part}_dataloader') or {}).get('dataset'),
            ann_file=[evaluator.get('ann_file') for evaluator in evaluators],
        )
        # Each detector has its own image preprocessing, so pipelines are not compared.
        return comparable_config(parts, (*NON_RECIPE_KEYS, 'pipeline'))

    def deployed(self) -> Config:
        """The config of the detector in the checkpoints; for a distillation, that of the plain student."""
        config = copy.deepcopy(self.config)
        if self.distilled:
            config.model = config.model.student
        return config

    def recipe(self, model: Any = None) -> dict[str, Any]:
        """All settings that affect the trained weights, except the seed, for comparison with other runs.

        Args:
            model: Model config to use instead of the run's own.
        """
        parts = dict(model=model or self.config.model, validation=self.evaluated_on())
        parts |= {key: self.config.get(key) for key in RECIPE_KEYS}
        return comparable_config(parts, NON_RECIPE_KEYS)


def read_work_dir(path: str | os.PathLike[str], best: bool = False) -> WorkDir:
    """Read a work directory.

    Args:
        path: The folder of a run.
        best: Use the epoch with the highest mAP instead of the last.

    Raises:
        MissingFileError: The folder does not exist.
        ConfigError: The folder is not the work directory of a run.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f'{path}: no such folder; name the work directory of a run')
    if not path.is_dir():
        raise ConfigError(f'{path}: must be the work directory of a run, got a file')
    configs = sorted(path.glob('*.py'))
    # A distillation also writes the config of its student.
    configs = [config for config in configs if config.name != STUDENT_FILE] or configs
    folders = [config.parents[1] for config in sorted(path.glob(f'*/{CONFIG}'))]
    loaded = {folder: Config.fromfile(str(folder / CONFIG)) for folder in folders}
    tests = {
        folder: config
        for folder, config in loaded.items()
        # With test-time augmentation the model is wrapped; such tests are skipped.
        if (folder / f'{folder.name}.json').is_file() and 'module' not in config.model
    }
    runs = {folder: config for folder, config in loaded.items() if _is_filled(folder / LOG)}
    names = tuple(config.stem for config in configs)
    if runs:
        # A new run in the same folder, without `resume`, replaces the earlier run.
        begun = [folder.name for folder, config in runs.items() if not config.get('resume')]
        records = read_scalars(path, since=begun[-1] if begun else '')
        found = WorkDir(path, list(runs.values())[-1], names)
    elif tests and not _checkpoints(path):
        folder, config = list(tests.items())[-1]
        found = WorkDir(path, config, names, checkpoint=config.get('load_from'))
        record = _read_json(folder)
        found.scores, found.score_thr = _scores(record), record.get(SCORE_THR)
        found.notes.append('a test, not a training run')
        return found
    elif loaded:
        trained = [config for folder, config in loaded.items() if folder not in tests]
        found, records = WorkDir(path, (trained or list(loaded.values()))[-1], names), []
    elif len(configs) == 1 and _checkpoints(path):
        # Only in folders with checkpoints: reading a config executes it, and it may be any other script.
        found, records = WorkDir(path, Config.fromfile(str(configs[0])), names), []
    else:
        inside = sorted(p.name for p in path.iterdir() if p.is_dir() and any(p.glob('*.py')))
        hint = f'; name one of its folders: {", ".join(inside)}' if inside else ''
        what = 'several configs and no log' if len(configs) > 1 else 'no training run'
        raise ConfigError(f'{path}: must be the work directory of a run, but contains {what}{hint}')
    if 'model' not in found.config or not found.config.get('train_cfg'):
        raise ConfigError(
            f'{path}: its config must have model and train_cfg; name the work directory of a training run'
        )
    found.records = records
    _read_progress(found, records)
    if found.finished:
        _read_scores(found, records, best)
        _add_tests(found, tests)
    return found


def titles_of(
    paths: Sequence[str | os.PathLike[str]], names: Sequence[str] | None
) -> Sequence[str]:
    """A title for each work directory or result file: its name, or its path if two have the same name.

    Args:
        paths: Work directories, or result files with the extension ``.bbox.json`` or ``.json``.
        names: Titles from the user, if any.

    Raises:
        ConfigError: A path is given twice, or ``names`` has another length or repeated titles.
    """
    resolved = [Path(path).resolve() for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise ConfigError(f'{paths[i]}: named twice; name it once')
    if names is None:
        names = [path.name.removesuffix('.json').removesuffix('.bbox') for path in resolved]
        return [
            str(path) if names.count(name) > 1 else name
            for path, name in zip(paths, names, strict=True)
        ]
    if len(names) != len(paths) or len(set(names)) < len(names):
        raise ConfigError(
            f'--names: must be {len(paths)} different titles, one for each work directory, got {len(names)}: '
            f'{", ".join(names)}'
        )
    return names


def latest_checkpoint(run: WorkDir) -> str:
    """The checkpoint of the metrics; for an unfinished run, its last checkpoint.

    Raises:
        MissingFileError: The checkpoint does not exist.
    """
    if run.checkpoint is not None:
        file = Path(run.checkpoint)
        if run.trained is None and '://' in run.checkpoint or file.is_file():
            return run.checkpoint
    elif not run.finished and run.trained:
        file = run.path / f'{run.unit}_{run.trained}.pth'
        if file.is_file():
            return str(file)
    wanted = run.checkpoint or f'{run.unit}_{run.length}.pth'
    raise MissingFileError(
        f'{run.path}: its checkpoint {Path(wanted).name} does not exist'
        f'{f" ({run.unit} {run.trained} of {run.length} is done)" if not run.finished else ""}; train it, '
        f'or name another work directory'
    )


def _read_progress(found: WorkDir, records: list[dict]) -> None:
    loop = found.config.train_cfg
    found.unit = 'epoch' if 'max_epochs' in loop else 'iter'
    found.length = loop['max_epochs' if found.unit == 'epoch' else 'max_iters']
    checkpoints = _checkpoints(found.path)
    last = found.path / 'last_checkpoint'
    if last.is_file():  # names the last checkpoint; a longer earlier run may have left later ones
        checkpoints = [Path(last.read_text(encoding='utf-8').strip().replace('\\', '/')).name]
    numbers = [_number(name) for name in checkpoints if name.startswith(found.unit)]
    found.trained = max(numbers, default=0)
    logged = max((record.get('epoch', 0) for record in records), default=0)
    if found.unit == 'epoch' and logged and found.trained > logged:
        found.trained = (
            logged - 1
        )  # the checkpoint is from an earlier run; this one has written none


def _read_scores(found: WorkDir, records: list[dict], best: bool) -> None:
    """Set the metrics of the last or the best epoch, and their checkpoint."""
    # In a run that counts iterations, mmengine may log each validation with step 0.
    validations = {
        record['step'] or found.length: record for record in records if 'iter' not in record
    }
    scores = {step: _scores(record) for step, record in validations.items()}
    epoch = found.length
    if best:
        with_map = [step for step in scores if 'mAP' in scores[step]]
        epoch = max(with_map, key=lambda step: scores[step]['mAP'], default=epoch)
    found.scores = dict(scores.get(epoch, {}))
    found.score_thr = validations.get(epoch, {}).get(SCORE_THR)
    name = f'{found.unit}_{epoch}.pth'
    kept = [found.path / name, *sorted(found.path.glob(f'best_*_{name}'))]
    found.checkpoint = next((str(file) for file in kept if file.is_file()), None)
    if found.checkpoint is None:
        found.notes.append(f'{name} does not exist any more')


def _add_tests(found: WorkDir, tests: dict[Path, Config]) -> None:
    """Add metrics that the run did not log from a test of the same checkpoint on the same images."""
    for folder, config in reversed(tests.items()):
        weights = config.get('load_from')
        if not weights or not found.checkpoint or not _same_file(weights, found.checkpoint):
            continue
        loaders = found.config.get('val_dataloader'), config.get('test_dataloader')
        images = [
            comparable_config((loader or {}).get('dataset'), NON_RECIPE_KEYS) for loader in loaders
        ]
        scores = _scores(_read_json(folder))
        new = [name for name in scores if name not in found.scores]
        if new and images[0] == images[1]:
            found.scores |= {name: scores[name] for name in new}
            found.notes.append(f'{", ".join(new)} from the test {folder.name}')


def comparable_config(node: Any, ignored: Collection[str], root: str | None = None) -> Any:
    """A config as plain dicts and lists without ignored keys, for comparison with other configs.

    Args:
        node: A config or a part of one.
        ignored: Keys to remove at any depth.
        root: Prefix to remove from strings, such as a data folder.
    """
    if isinstance(node, Mapping):
        items = node.items()
        return {str(k): comparable_config(v, ignored, root) for k, v in items if k not in ignored}
    if isinstance(node, (list, tuple)):
        return [comparable_config(value, ignored, root) for value in node]
    if isinstance(node, str) and root and node.startswith(root):
        return node[len(root) :]
    return node if isinstance(node, (str, int, float, bool, type(None))) else str(node)


def read_scalars(work_dir: str | os.PathLike[str], since: str = '') -> list[dict]:
    """The records of mmengine's ``LocalVisBackend`` in a work directory.

    A resumed run has several files; if they contain the same step, the later file is used.

    Args:
        work_dir: Work directory of one run, resumed or not.
        since: Name of the first folder to read; earlier ones are skipped.

    Returns:
        The records in the order of training. Records of training steps have ``iter`` and, in runs that count
        epochs, ``epoch``. Records of validations have ``step``, which is the epoch, or 0 in runs that count
        iterations, and ``after``, the last logged iteration before.
    """
    records: dict[tuple[bool, int, int], dict] = {}
    # Folders are named after their start time, so sorting them gives their order.
    for path in sorted(Path(work_dir).glob(f'*/{LOG}')):
        if path.parents[1].name < since:
            continue
        after = 0
        for line in path.read_text(encoding='utf-8').splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the last line of an interrupted run is incomplete
            after = record.get('iter', after)
            step, trains = record.get('step', 0), 'iter' in record
            records[(trains, step, 0 if trains or step else after)] = (
                record if trains else record | {'after': after}
            )
    return [records[key] for key in sorted(records)]


def _scores(record: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a record, without -1, which COCO returns if there are no objects."""
    return {name: record[key] for name, key in METRICS.items() if record.get(key, -1) >= 0}


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / f'{folder.name}.json').read_text(encoding='utf-8'))
    except ValueError:  # the file of an interrupted test is incomplete
        return {}


def _checkpoints(path: Path) -> list[str]:
    return [file.name for kind in ('epoch', 'iter') for file in path.glob(f'{kind}_*.pth')]


def _number(checkpoint: str) -> int:
    digits = Path(checkpoint).stem.rpartition('_')[2]
    return int(digits) if digits.isdigit() else 0


def _is_filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _same_file(first: str, second: str) -> bool:
    return Path(first).resolve() == Path(second).resolve()
