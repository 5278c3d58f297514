"""The content of a training run's work directory: config, logged metrics, checkpoints."""

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
LOG, CONFIG = 'vis_data/scalars.json', 'vis_data/config.py'  # in a folder named by the time
#: How data is read and when it is validated decides nothing that a run learns.
NO_RECIPE = (
    *('_scope_', 'palette', 'num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor'),
    *('val_interval', 'val_begin', 'dynamic_intervals'),
)
TRAINING = (
    *('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr'),
    'custom_hooks',
)


@dataclass(eq=False)
class WorkDir:
    """One training, or one test of weights from elsewhere.

    Attributes:
        path: The folder.
        config: As it was trained, or tested.
        names: Under which names configs were dumped there.
        trained: Epochs, or iterations, that are done; ``None`` where nothing was trained.
        length: How many the config asks for.
        unit: ``'epoch'`` or ``'iter'``.
        checkpoint: Whose metrics these are; ``None`` if the file is not there any more.
        scores: By the names of :data:`METRICS`, in 0..1; what is not known is left out.
        score_thr: The score at which one threshold for all classes has the highest F1, if it was logged.
        records: What was logged, as :func:`read_scalars` returns it.
        notes: Notes for the reader of these numbers, a sentence each.
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
        return self.trained is None or self.length is None or self.trained >= self.length

    @property
    def distilled(self) -> bool:
        return self.config.model.type == 'Distiller'

    @property
    def seed(self) -> int | None:
        return (self.config.get('randomness') or {}).get('seed')

    @property
    def part(self) -> str:
        """Which part of the config the metrics were measured on."""
        return 'test' if self.trained is None else 'val'

    def evaluated_on(self) -> dict[str, Any]:
        """The images, classes and labels of the metrics; to be compared."""
        evaluators = self.config.get(f'{self.part}_evaluator') or []
        evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
        parts = dict(
            dataset=(self.config.get(f'{self.part}_dataloader') or {}).get('dataset'),
            ann_file=[evaluator.get('ann_file') for evaluator in evaluators],
        )
        # How an image is prepared is the detector's own affair.
        return essence(parts, (*NO_RECIPE, 'pipeline'))

    def deployed(self) -> Config:
        """The config of the detector that its checkpoints belong to: the student without teacher."""
        config = copy.deepcopy(self.config)
        if self.distilled:
            config.model = config.model.student
        return config

    def recipe(self, model: Any = None) -> dict[str, Any]:
        """All that decides what the training gives, but for its seed; to be compared.

        Args:
            model: In place of its own model.
        """
        parts = dict(model=model or self.config.model, validation=self.evaluated_on())
        parts |= {key: self.config.get(key) for key in TRAINING}
        return essence(parts, NO_RECIPE)


def read_work_dir(path: str | os.PathLike[str], best: bool = False) -> WorkDir:
    """Read a work directory.

    Args:
        path: The folder that a run wrote.
        best: Take the epoch of the highest mAP in place of the last.

    Raises:
        MissingFileError: There is no such folder.
        ConfigError: It is no work directory of a run.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f'{path}: there is no such folder')
    if not path.is_dir():
        raise ConfigError(f'{path} is a file; give the work directory of a run')
    configs = sorted(path.glob('*.py'))
    # Beside the config of a distillation stands that of its student.
    configs = [config for config in configs if config.name != STUDENT_FILE] or configs
    folders = [config.parents[1] for config in sorted(path.glob(f'*/{CONFIG}'))]
    loaded = {folder: Config.fromfile(str(folder / CONFIG)) for folder in folders}
    tests = {
        folder: config
        for folder, config in loaded.items()
        # Averages over augmented images wrap the model.
        if (folder / f'{folder.name}.json').is_file() and 'module' not in config.model
    }
    runs = {folder: config for folder, config in loaded.items() if _is_filled(folder / LOG)}
    names = tuple(config.stem for config in configs)
    if runs:
        # Trained again into the same folder, without `resume`: the former training is history.
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
        # Only beside checkpoints: reading a config runs it, and any script may lie in a folder.
        found, records = WorkDir(path, Config.fromfile(str(configs[0])), names), []
    else:
        inside = sorted(p.name for p in path.iterdir() if p.is_dir() and any(p.glob('*.py')))
        hint = f'; the folders in it do: {", ".join(inside)}' if inside else ''
        what = 'several configs and no log' if len(configs) > 1 else 'no training run'
        raise ConfigError(f'{path} holds {what}{hint}')
    if 'model' not in found.config or not found.config.get('train_cfg'):
        raise ConfigError(
            f'{path}: its config has no model or no train_cfg, so it trains no detector'
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
    """A title for each work directory, or file of results: its name, or its path where two have the same.

    Args:
        paths: Work directories, or files that end in ``.bbox.json`` or ``.json``.
        names: Titles that are given for them.

    Raises:
        ConfigError: A folder is given twice, or the titles are too few, too many or not distinct.
    """
    resolved = [Path(path).resolve() for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise ConfigError(f'{paths[i]}: named twice; give it once')
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
    """The checkpoint of the metrics; of an unfinished training the last one that it wrote.

    Raises:
        MissingFileError: There is none.
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
        f'{run.path}: its checkpoint {Path(wanted).name} is not there'
        f'{f"; {run.unit} {run.trained} of {run.length} is done" if not run.finished else ""}; train it, '
        f'or name another work directory'
    )


def _read_progress(found: WorkDir, records: list[dict]) -> None:
    loop = found.config.train_cfg
    found.unit = 'epoch' if 'max_epochs' in loop else 'iter'
    found.length = loop['max_epochs' if found.unit == 'epoch' else 'max_iters']
    checkpoints = _checkpoints(found.path)
    last = found.path / 'last_checkpoint'
    if last.is_file():  # it names what was written last, also over a longer former run
        checkpoints = [Path(last.read_text(encoding='utf-8').strip().replace('\\', '/')).name]
    numbers = [_number(name) for name in checkpoints if name.startswith(found.unit)]
    found.trained = max(numbers, default=0)
    logged = max((record.get('epoch', 0) for record in records), default=0)
    if found.unit == 'epoch' and logged and found.trained > logged:
        found.trained = logged - 1  # of a former training: this one has written none yet


def _read_scores(found: WorkDir, records: list[dict], best: bool) -> None:
    """The metrics of the last epoch, or the best, and the checkpoint they belong to."""
    # In a run counted in iterations mmengine may log each validation as step 0.
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
        found.notes.append(f'{name} is not there any more')


def _add_tests(found: WorkDir, tests: dict[Path, Config]) -> None:
    """Fill what the training did not log from a test of the same checkpoint on the same images."""
    for folder, config in reversed(tests.items()):
        weights = config.get('load_from')
        if not weights or not found.checkpoint or not _same_file(weights, found.checkpoint):
            continue
        loaders = found.config.get('val_dataloader'), config.get('test_dataloader')
        images = [essence((loader or {}).get('dataset'), NO_RECIPE) for loader in loaders]
        scores = _scores(_read_json(folder))
        new = [name for name in scores if name not in found.scores]
        if new and images[0] == images[1]:
            found.scores |= {name: scores[name] for name in new}
            found.notes.append(f'{", ".join(new)} of the test {folder.name}')


def essence(node: Any, leave_out: Collection[str], root: str | None = None) -> Any:
    """A config as plain dicts and lists, without the keys that do not count.

    Args:
        node: A config or a part of one.
        leave_out: These keys, wherever they stand.
        root: A beginning of paths that is cut off.
    """
    if isinstance(node, Mapping):
        items = node.items()
        return {str(k): essence(v, leave_out, root) for k, v in items if k not in leave_out}
    if isinstance(node, (list, tuple)):
        return [essence(value, leave_out, root) for value in node]
    if isinstance(node, str) and root and node.startswith(root):
        return node[len(root) :]
    return node if isinstance(node, (str, int, float, bool, type(None))) else str(node)


def read_scalars(work_dir: str | os.PathLike[str], since: str = '') -> list[dict]:
    """What mmengine's ``LocalVisBackend`` logged in a work folder.

    A resumed run has several files; where they have the same step, the later file counts.

    Args:
        work_dir: Of one training, resumed or not.
        since: Leave out the folders before that one.

    Returns:
        The records in the order of training: those of training steps have ``iter`` and, in runs counted
        in epochs, ``epoch``; those of validation have ``step``, the epoch, which is 0 in runs counted in
        iterations, and ``after``, the last iteration that was logged before.
    """
    records: dict[tuple[bool, int, int], dict] = {}
    # The folders are named by the time they were made, so sorted they are in order.
    for path in sorted(Path(work_dir).glob(f'*/{LOG}')):
        if path.parents[1].name < since:
            continue
        after = 0
        for line in path.read_text(encoding='utf-8').splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was stopped while it wrote
            after = record.get('iter', after)
            step, trains = record.get('step', 0), 'iter' in record
            records[(trains, step, 0 if trains or step else after)] = (
                record if trains else record | {'after': after}
            )
    return [records[key] for key in sorted(records)]


def _scores(record: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a record; COCO's -1 means that there was nothing to find."""
    return {name: record[key] for name, key in METRICS.items() if record.get(key, -1) >= 0}


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / f'{folder.name}.json').read_text(encoding='utf-8'))
    except ValueError:  # a test that was stopped while it wrote
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
