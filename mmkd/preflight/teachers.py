"""Whether the teachers of a distillation can be loaded, and its losses compare what they name."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

from mmdet.registry import MODELS

from ..errors import ConfigError, UserError
from ..teachers.config import config_classes, load_config
from .advice import Advice
from .files import read_teachers
from .planned_run import PlannedRun


def check_teacher_configs(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The configs of teachers can be read."""
    for key, teacher in read_teachers(run.model_config):
        if 'config' in teacher and not teacher.get('cache'):
            try:
                load_config(teacher['config'], key)
            except UserError as error:
                yield error


def check_distillation(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The teachers load, the classes pair, and each loss finds what it compares."""
    if not run.distils or not run.trains:
        return
    config = copy.deepcopy(dict(run.model_config))
    config['classes'] = config.get('classes') or _classes(run)
    distiller = MODELS.build(config)
    yield from distiller.problems()


def check_schedules(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Schedules that count epochs stand in a run that has epochs."""
    loop = dict(run.cfg.get('train_cfg') or {})
    by_epoch = loop.get('by_epoch') or loop.get('type') == 'EpochBasedTrainLoop'
    if 'train' not in run.modes or loop.get('max_epochs') or by_epoch:
        return
    for name, entry in (run.model_config.get('losses') or {}).items():
        schedule = (entry or {}).get('schedule') or {}
        moments = any(schedule.get(key) for key in ('begin', 'end', 'warmup'))
        if moments and schedule.get('unit', 'epoch') == 'epoch':
            yield ConfigError(
                f'model.losses.{name}.schedule.unit: counts epochs, which {loop.get("type")} '
                f"does not have; write unit='iter' and iterations"
            )


def _classes(run: PlannedRun) -> Sequence[str] | None:
    named = [data.classes for data in run.data if isinstance(data.classes, (tuple, list))]
    return tuple(named[0]) if named else config_classes(run.cfg)
