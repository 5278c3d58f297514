"""Check that the teachers of a distillation can be loaded and that its losses find their outputs."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmdet.registry import MODELS

from ..errors import ConfigError, UserError
from ..teachers.config import config_classes, load_config
from .advice import Advice
from .files import read_teachers
from .planned_run import PlannedRun


def check_teacher_configs(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The configs of teachers can be read and normalize images."""
    for key, teacher in read_teachers(run.model_config):
        if 'config' in teacher and not teacher.get('cache'):
            try:
                config = load_config(teacher['config'], key)
            except UserError as error:
                yield error
                continue
            if config.model.get('data_preprocessor') is None:
                yield Advice(
                    f'{key}.config: its model has no data_preprocessor, so it receives pixels from 0 to 255; '
                    f'add the data_preprocessor of its training run'
                )


def check_distillation(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The teachers load, the classes match, and each loss finds the outputs that it compares."""
    if not run.distils or not run.trains:
        return
    config = copy.deepcopy(dict(run.model_config))
    config['classes'] = config.get('classes') or _classes(run)
    distiller = MODELS.build(config)
    yield from distiller.problems()


def check_schedules(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Schedules of losses and learning rates have the unit of the run and end within it."""
    loop = dict(run.cfg.get('train_cfg') or {})
    by_epoch = loop.get('by_epoch') or loop.get('type') == 'EpochBasedTrainLoop'
    if 'train' not in run.modes:
        return
    counts_epochs = bool(run.epochs or by_epoch)
    entries = run.cfg.get('param_scheduler') or ()
    for index, entry in enumerate(entries if isinstance(entries, (list, tuple)) else [entries]):
        if isinstance(entry, dict) and isinstance(entry.get('type'), str):
            yield from _check_scheduler_length(
                run, f'param_scheduler.{index}', entry, counts_epochs
            )
            yield from _check_rising_rate(run, f'param_scheduler.{index}', entry)
    losses = run.model_config.get('losses')
    if counts_epochs or not isinstance(losses, dict):
        return
    for name, entry in losses.items():
        schedule = (entry or {}).get('schedule') or {}
        moments = any(schedule.get(key) for key in ('begin', 'end', 'warmup'))
        if moments and schedule.get('unit', 'epoch') == 'epoch':
            yield ConfigError(
                f"model.losses.{name}.schedule.unit: must be 'iter', as {loop.get('type')} has no epochs, "
                f"got 'epoch'; write unit='iter' and give the lengths in iterations"
            )


def _check_scheduler_length(
    run: PlannedRun, key: str, entry: dict[str, Any], counts_epochs: bool
) -> Iterator[Advice]:
    """Report a learning rate schedule that has no effect or does not end within the run."""
    by_epoch = entry.get('by_epoch', True)
    if by_epoch and not counts_epochs:
        if not entry.get('convert_to_iter_based') and 'Plateau' not in entry['type']:
            yield Advice(
                f'{key}.by_epoch: must be False, as this run counts iterations, got True; the learning rate '
                f'never changes; write by_epoch=False and give the lengths in iterations'
            )
        return
    length = run.epochs if by_epoch else run.iterations
    unit = 'epochs' if by_epoch else 'iterations'
    if not length:
        return
    milestones, warm_up = entry.get('milestones') or (), entry['type'] == 'LinearLR'
    if isinstance(milestones, (list, tuple)) and milestones and min(milestones) >= length:
        yield Advice(
            f'{key}.milestones: must be below {length}, the number of {unit} of this run, got '
            f'{list(milestones)}; the learning rate never changes; write smaller milestones'
        )
    elif warm_up and (entry.get('end') or 0) > length:
        yield Advice(
            f'{key}.end: must be at most {length}, the number of {unit} of this run, got {entry["end"]}; the '
            f'learning rate never reaches its full value; write a smaller end'
        )


def _check_rising_rate(run: PlannedRun, key: str, entry: dict[str, Any]) -> Iterator[Advice]:
    """A cosine schedule that ends above the learning rate, which was lowered without it."""
    cfg = run.cfg
    rate = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr')
    scaled = cfg.get('auto_scale_lr') or {}
    numbers = [rate, entry.get('eta_min')]
    if 'Cosine' not in entry['type'] or not all(isinstance(it, (int, float)) for it in numbers):
        return
    if scaled.get('enable') and scaled.get('base_batch_size'):
        batch = (cfg.get('train_dataloader') or {}).get('batch_size', 1)
        rate *= batch * int(os.environ.get('WORLD_SIZE', 1)) / scaled['base_batch_size']
    if entry['eta_min'] > rate:
        yield Advice(
            f'{key}.eta_min: must be below the learning rate, {rate:g}, got {entry["eta_min"]:g}; write '
            f'eta_min_ratio=0.05'
        )


def _classes(run: PlannedRun) -> Sequence[str] | None:
    named = [data.classes for data in run.data if isinstance(data.classes, (tuple, list))]
    return tuple(named[0]) if named else config_classes(run.cfg)
