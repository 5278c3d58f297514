"""Whether what a config names beside data and detector is registered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmdet.registry import (
    DATA_SAMPLERS,
    HOOKS,
    LOOPS,
    METRICS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISUALIZERS,
)
from mmengine.registry import Registry

from ..errors import ConfigError, UserError, did_you_mean
from .advice import Advice
from .planned_run import PlannedRun

EVALUATED = ('dataloader', 'cfg', 'evaluator')


def check_types(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Optimizer, schedules, samplers, metrics and hooks are registered, and no part of a loop is missing."""
    scope = run.cfg.get('default_scope') or 'mmdet'
    for key, config, registry in _parts(run):
        kind = config.get('type')
        if not isinstance(kind, str):
            continue
        with registry.switch_scope_and_registry(scope) as scoped:
            if scoped.get(kind) is not None:
                continue
            known: dict[str, Any] = {}
            level: Registry | None = scoped
            while level is not None:
                known.update(level.module_dict)
                level = level.parent
            yield ConfigError(
                f'{key}.type: {kind!r} is not registered{did_you_mean(kind, known)}; a class of your own '
                f'needs custom_imports'
            )
    for mode in ('val', 'test'):
        parts = [f'{mode}_{part}' for part in EVALUATED]
        absent = [part for part in parts if run.cfg.get(part) is None]
        if 0 < len(absent) < len(parts):
            others = ' and '.join(part for part in parts if part not in absent)
            yield ConfigError(
                f'{absent[0]}: must be given beside {others}, got None; give it, or take those out'
            )


def _parts(run: PlannedRun) -> Iterator[tuple[str, dict[str, Any], Registry]]:
    cfg = run.cfg
    for mode in run.modes:
        loader = cfg.get(f'{mode}_dataloader') or {}
        for name in ('sampler', 'batch_sampler'):
            yield from _of(f'{mode}_dataloader.{name}', loader.get(name), DATA_SAMPLERS)
        yield from _of(f'{mode}_cfg', cfg.get(f'{mode}_cfg'), LOOPS)
        if mode != 'train':
            evaluator = cfg.get(f'{mode}_evaluator')
            if not (isinstance(evaluator, dict) and 'metrics' in evaluator):  # of another class
                yield from _of(f'{mode}_evaluator', evaluator, METRICS)
    if 'train' in run.modes:
        wrapper = cfg.get('optim_wrapper') or {}
        yield from _of('optim_wrapper', wrapper, OPTIM_WRAPPERS)
        yield from _of('optim_wrapper.optimizer', wrapper.get('optimizer'), OPTIMIZERS)
        yield from _of('param_scheduler', cfg.get('param_scheduler'), PARAM_SCHEDULERS)
    hooks = cfg.get('default_hooks') or {}
    for name, hook in hooks.items():
        yield from _of(f'default_hooks.{name}', hook, HOOKS)
    yield from _of('custom_hooks', cfg.get('custom_hooks'), HOOKS)
    yield from _of('visualizer', cfg.get('visualizer'), VISUALIZERS)


def _of(key: str, value: Any, registry: Registry) -> Iterator[tuple[str, dict[str, Any], Registry]]:
    """A config, or those of a list, with its key."""
    if isinstance(value, dict):
        yield key, value, registry
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            if isinstance(each, dict):
                yield f'{key}.{index}', each, registry
