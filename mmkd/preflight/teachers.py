"""Whether the teachers of a distillation can be loaded, and its losses compare what they name."""

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
    """The configs of teachers can be read, and normalise images."""
    for key, teacher in read_teachers(run.model_config):
        if 'config' in teacher and not teacher.get('cache'):
            try:
                config = load_config(teacher['config'], key)
            except UserError as error:
                yield error
                continue
            if config.model.get('data_preprocessor') is None:
                yield Advice(
                    f'{key}.config: its model has no data_preprocessor, so it is given pixels from 0 to 255; '
                    f'add the one that it was trained with'
                )


def check_distillation(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The teachers load, the classes pair, and each loss finds what it compares."""
    if not run.distils or not run.trains:
        return
    config = copy.deepcopy(dict(run.model_config))
    config['classes'] = config.get('classes') or _classes(run)
    distiller = MODELS.build(config)
    yield from distiller.problems()


def check_schedules(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Schedules of losses and learning rates fit the length of the run, in epochs or iterations."""
    loop = dict(run.cfg.get('train_cfg') or {})
    by_epoch = loop.get('by_epoch') or loop.get('type') == 'EpochBasedTrainLoop'
    if 'train' not in run.modes:
        return
    counts_epochs = bool(run.epochs or by_epoch)
    entries = run.cfg.get('param_scheduler') or ()
    for index, entry in enumerate(entries if isinstance(entries, (list, tuple)) else [entries]):
        if isinstance(entry, dict) and isinstance(entry.get('type'), str):
            yield from _never_in_effect(run, f'param_scheduler.{index}', entry, counts_epochs)
            yield from _rises(run, f'param_scheduler.{index}', entry)
    losses = run.model_config.get('losses')
    if counts_epochs or not isinstance(losses, dict):
        return
    for name, entry in losses.items():
        schedule = (entry or {}).get('schedule') or {}
        moments = any(schedule.get(key) for key in ('begin', 'end', 'warmup'))
        if moments and schedule.get('unit', 'epoch') == 'epoch':
            yield ConfigError(
                f'model.losses.{name}.schedule.unit: counts epochs, which {loop.get("type")} '
                f"does not have; write unit='iter' and iterations"
            )


def _never_in_effect(
    run: PlannedRun, key: str, entry: dict[str, Any], counts_epochs: bool
) -> Iterator[Advice]:
    """A schedule of the learning rate that does nothing, or does not come to its end."""
    by_epoch = entry.get('by_epoch', True)
    if by_epoch and not counts_epochs:
        if not entry.get('convert_to_iter_based') and 'Plateau' not in entry['type']:
            yield Advice(
                f'{key}.by_epoch: counts epochs, which this run of iterations does not have, so that the '
                f'learning rate stays as it is; write by_epoch=False and iterations'
            )
        return
    length = run.epochs if by_epoch else run.iterations
    unit = 'epochs' if by_epoch else 'iterations'
    if not length:
        return
    milestones, warm_up = entry.get('milestones') or (), entry['type'] == 'LinearLR'
    if isinstance(milestones, (list, tuple)) and milestones and min(milestones) >= length:
        yield Advice(
            f'{key}.milestones: {list(milestones)} are not reached in the {length} {unit} of this run, so '
            f'that the learning rate stays as it is; write smaller ones'
        )
    elif warm_up and (entry.get('end') or 0) > length:
        yield Advice(
            f'{key}.end: the learning rate rises for {entry["end"]} {unit}, and this run has {length}, so '
            f'that it never has its full value; write a smaller end'
        )


def _rises(run: PlannedRun, key: str, entry: dict[str, Any]) -> Iterator[Advice]:
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
