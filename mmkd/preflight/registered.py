"""Check that optimizers, schedules, hooks, metrics and loaders are registered and accept their options."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from mmdet.datasets.samplers import MultiSourceSampler
from mmdet.evaluation import CocoMetric, VOCMetric
from mmdet.registry import (
    DATA_SAMPLERS,
    HOOKS,
    LOOPS,
    METRICS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    VISUALIZERS,
)
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry
from mmengine.runner import Runner
from mmengine.runner.priority import Priority, get_priority
from torch.utils.data import DataLoader

from ..errors import ConfigError, UserError, did_you_mean
from .advice import Advice
from .annotations import describe_error
from .planned_run import PlannedRun

LOOP_SECTIONS = ('dataloader', 'cfg', 'evaluator')
# Options of a data loader that mmengine handles and torch's DataLoader does not receive as given.
MMENGINE_OPTIONS = (
    *('dataset', 'sampler', 'batch_sampler', 'collate_fn', 'worker_init_fn'),
    'num_batch_per_epoch',
)
# Exceptions of constructors that reject their arguments.
CONSTRUCTOR_ERRORS = (TypeError, ValueError, KeyError, AssertionError)
# Metrics with constructors that neither read nor download files.
OFFLINE_METRICS = (CocoMetric, VOCMetric)
# Samplers that never end, for runs that count iterations.
INFINITE_SAMPLERS = (InfiniteSampler, MultiSourceSampler)
# Keys of paramwise_cfg that mmengine's DefaultOptimWrapperConstructor reads.
PARAMWISE_KEYS = (
    *('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult'),
    *('dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate'),
)
# By metric: its prefix, the values of its option `metric`, and the names of the scores for each value.
SCORES: dict[Any, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    CocoMetric: (
        'coco',
        ('bbox', 'segm'),
        ('{}_mAP', '{}_mAP_50', '{}_mAP_75', '{}_mAP_s', '{}_mAP_m', '{}_mAP_l'),
    ),
}
# Length of a schedule in a run of unknown length.
UNKNOWN_LENGTH = 10**9
# Config keys of MMDetection 2 and their replacements.
OLD_KEYS = dict(
    data='train_dataloader',
    runner='train_cfg',
    optimizer='optim_wrapper.optimizer',
    optimizer_config='optim_wrapper',
    lr_config='param_scheduler',
    evaluation='train_cfg.val_interval',
    checkpoint_config='default_hooks.checkpoint',
    log_config='default_hooks.logger',
)
OLD_LOADER_OPTIONS = dict(samples_per_gpu='batch_size', workers_per_gpu='num_workers')


def check_types(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Optimizer, schedules, samplers, metrics and hooks are registered, and no loop section is missing."""
    scope = run.cfg.get('default_scope') or 'mmdet'
    for key, config, registry in _registered_parts(run):
        kind = config.get('type')
        if not isinstance(kind, str):
            continue
        with registry.switch_scope_and_registry(scope) as scoped:
            found = scoped.get(kind)
            if found is not None:
                yield from _check_options(run, key, config, registry, found)
                continue
            known: dict[str, Any] = {}
            level: Registry | None = scoped
            while level is not None:
                known.update(level.module_dict)
                level = level.parent
            yield ConfigError(
                f'{key}.type: {kind!r} is not registered{did_you_mean(kind, known)}; add the module of your '
                f'own class to custom_imports'
            )
    yield from _check_old_keys(run)
    yield from _check_save_best(run)
    for mode in ('train', 'val', 'test') if run.trains else ('val', 'test'):
        parts = [f'{mode}_{part}' for part in LOOP_SECTIONS]
        if mode == 'train':
            parts[-1] = 'optim_wrapper'
        absent = [part for part in parts if run.cfg.get(part) is None]
        if 0 < len(absent) < len(parts):
            others = ' and '.join(part for part in parts if part not in absent)
            yield ConfigError(
                f'{absent[0]}: must be set together with {others}, got None; set it, or remove {others}'
            )


def check_loaders(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Data loaders accept their options."""
    for mode in run.modes:
        key = f'{mode}_dataloader'
        config = run.cfg.get(key) or {}
        loader = {k: v for k, v in config.items() if k not in MMENGINE_OPTIONS}
        try:
            with warnings.catch_warnings():  # the run repeats the warning about too few CPUs
                warnings.simplefilter('ignore')
                dataset: Any = [0]  # a stand-in
                DataLoader(dataset, sampler=dataset if config.get('sampler') else None, **loader)
        except (TypeError, ValueError) as error:
            hint = ''.join(
                f'; MMDetection 3 calls {old} {now}'
                for old, now in OLD_LOADER_OPTIONS.items()
                if old in loader
            )
            yield ConfigError(f'{key}: {describe_error(error)}{hint}')


def _check_old_keys(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Report keys of MMDetection 2, which MMDetection 3 ignores."""
    found = {old: now for old, now in OLD_KEYS.items() if isinstance(run.cfg.get(old), dict)}
    wrapper = run.cfg.get('optim_wrapper')
    if wrapper and run.cfg.get('optimizer') == wrapper.get('optimizer'):
        found.pop('optimizer', None)  # a variable that optim_wrapper uses
    if found and run.trains:
        trained = any(
            run.cfg.get(key) for key in ('train_dataloader', 'train_cfg', 'optim_wrapper')
        )
        kind = Advice if trained else ConfigError
        names = ', '.join(found)
        yield kind(
            f'{next(iter(found))}: keys of MMDetection 2 are ignored, got {names}; replace them with '
            f'{", ".join(dict.fromkeys(found.values()))}'
        )


def _check_options(
    run: PlannedRun, key: str, config: dict[str, Any], registry: Registry, found: Any
) -> Iterator[UserError | Advice]:
    """Report options that a registered class rejects, as far as possible without the run."""
    given = {k: v for k, v in config.items() if k not in ('type', '_scope_')}
    if registry is HOOKS:
        yield from _check_priority(key, given.pop('priority', None))
    if (
        registry is DATA_SAMPLERS
        and isinstance(found, type)
        and issubclass(found, INFINITE_SAMPLERS)
    ):
        yield from _check_infinite_sampler(run, key, config)
    if registry is OPTIM_WRAPPERS:
        if 'constructor' in given:  # it may read other options
            return
        yield from _check_paramwise_cfg(
            run, f'{key}.paramwise_cfg', given.pop('paramwise_cfg', None)
        )
    unknown = _unknown_option(found, given)
    if unknown:
        hint = did_you_mean(unknown, inspect.signature(found).parameters)
        yield ConfigError(f'{key}.{unknown}: {config["type"]} has no such option{hint}; remove it')
        return
    try:
        if registry is OPTIMIZERS:
            _build_optimizer(config)
        elif registry is PARAM_SCHEDULERS:
            _build_scheduler(run, config)
        elif found is CheckpointHook:
            registry.build(dict(given, type=config['type']))
        elif registry is METRICS and (
            found in OFFLINE_METRICS or found.__module__.startswith('mmkd.')
        ):
            registry.build({**config, **({'ann_file': None} if 'ann_file' in config else {})})
    except CONSTRUCTOR_ERRORS as error:
        if 'process group' not in str(error):  # the launcher creates it later
            yield ConfigError(f'{key}: {config["type"]} cannot be built: {describe_error(error)}')
    except Exception:  # noqa: S110  # depends on devices or packages: left to the run
        pass


def _unknown_option(found: Any, given: dict[str, Any]) -> str | None:
    """The first option that a class does not have; None if it has all or accepts any."""
    try:
        parameters = dict(inspect.signature(found).parameters)
    except (TypeError, ValueError):  # C code has no signature
        return None
    if found is CheckpointHook:  # it passes them to save_checkpoint after the first epoch
        parameters |= inspect.signature(Runner.save_checkpoint).parameters
    elif any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return None
    return next((name for name in given if name not in parameters), None)


def _check_infinite_sampler(
    run: PlannedRun, key: str, config: dict[str, Any]
) -> Iterator[ConfigError]:
    trains = key.startswith('train_')
    if not trains or run.epochs is not None:
        loop = 'the epoch' if trains else 'the evaluation'
        yield ConfigError(
            f"{key}.type: {config['type']} never ends, so {loop} never ends; write 'DefaultSampler'"
        )


def _check_paramwise_cfg(run: PlannedRun, key: str, options: Any) -> Iterator[Advice]:
    """Report misspelled options for single parameters, which mmengine ignores."""
    if not isinstance(options, dict):
        return
    for name in options:
        if name not in PARAMWISE_KEYS:
            yield Advice(
                f'{key}.{name}: mmengine has no such option{did_you_mean(name, PARAMWISE_KEYS)}; remove it'
            )
    try:
        names = [name for name, _ in run.detector.named_parameters()]
    except Exception:  # another check reports it
        return
    parts = {part for name in names for part in (name, *name.split('.'))}
    for name in options.get('custom_keys') or ():
        # Names without a similar parameter are no fault: many configs name modules, such as norms, that only
        # some detectors have.
        near = difflib.get_close_matches(name, parts, n=1, cutoff=0.8)
        if near and not any(name in each for each in names):
            yield Advice(
                f'{key}.custom_keys: no parameter of {run.detector_key} has {name!r} in its name; near: '
                f'{near[0]}'
            )


def _check_save_best(run: PlannedRun) -> Iterator[ConfigError]:
    """Report a ``save_best`` that no metric returns; it would stop the run after its first evaluation."""
    hook = (run.cfg.get('default_hooks') or {}).get('checkpoint') or {}
    best = hook.get('save_best')
    evaluator = run.cfg.get('val_evaluator')
    if not best or not evaluator or run.cfg.get('val_cfg') is None:
        return
    known: list[str] = []
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        kind = METRICS.get(metric.get('type')) if isinstance(metric.get('type'), str) else None
        if kind not in SCORES or metric.get('classwise') or metric.get('metric_items'):
            return
        default, names, scores = SCORES[kind]
        given = metric.get('metric', names)
        prefix = metric.get('prefix') or default
        for name in [given] if isinstance(given, str) else given:
            if name not in names:
                return
            known += [f'{prefix}/{score.format(name)}' for score in scores]
    for name in [best] if isinstance(best, str) else best:
        if name != 'auto' and name not in known:
            yield ConfigError(
                f'default_hooks.checkpoint.save_best: must be a score of val_evaluator, got {name!r}; write '
                f"'auto' or one of {', '.join(known)}"
            )


def _check_priority(key: str, priority: Any) -> Iterator[ConfigError]:
    try:
        get_priority(priority if priority is not None else 'NORMAL')
    except (KeyError, TypeError, ValueError):
        names = ', '.join(each.name for each in Priority)
        yield ConfigError(
            f'{key}.priority: must be an integer from 0 to 100 or one of {names}, got {priority!r}'
        )


def _build_optimizer(config: Any) -> Any:
    return OPTIMIZERS.build(dict(config, params=[torch.nn.Parameter(torch.zeros(1))]))


def _build_scheduler(run: PlannedRun, config: dict[str, Any]) -> None:
    given = (run.cfg.get('optim_wrapper') or {}).get('optimizer')
    try:
        optimizer = _build_optimizer(given)
    except Exception:  # reported for its own key, or several optimizers
        return
    by_epoch = config.get('by_epoch', True)
    end = run.epochs if by_epoch else run.iterations
    defaults = dict(optimizer=optimizer, epoch_length=1, end=end or UNKNOWN_LENGTH)
    PARAM_SCHEDULERS.build(dict(config), default_args=defaults)


def _registered_parts(run: PlannedRun) -> Iterator[tuple[str, dict[str, Any], Registry]]:
    """``(key, config, registry)`` of every part of a run except data sets and model."""
    cfg = run.cfg
    for mode in run.modes:
        loader = cfg.get(f'{mode}_dataloader') or {}
        for name in ('sampler', 'batch_sampler'):
            yield from _configs_in(f'{mode}_dataloader.{name}', loader.get(name), DATA_SAMPLERS)
        yield from _configs_in(f'{mode}_cfg', cfg.get(f'{mode}_cfg'), LOOPS)
        if mode != 'train':
            evaluator = cfg.get(f'{mode}_evaluator')
            if not (isinstance(evaluator, dict) and 'metrics' in evaluator):  # a custom evaluator
                yield from _configs_in(f'{mode}_evaluator', evaluator, METRICS)
    if 'train' in run.modes:
        wrapper = cfg.get('optim_wrapper') or {}
        yield from _configs_in('optim_wrapper', wrapper, OPTIM_WRAPPERS)
        yield from _configs_in('optim_wrapper.optimizer', wrapper.get('optimizer'), OPTIMIZERS)
        yield from _configs_in('param_scheduler', cfg.get('param_scheduler'), PARAM_SCHEDULERS)
    hooks = cfg.get('default_hooks') or {}
    for name, hook in hooks.items():
        yield from _configs_in(f'default_hooks.{name}', hook, HOOKS)
    yield from _configs_in('custom_hooks', cfg.get('custom_hooks'), HOOKS)
    visualizer = cfg.get('visualizer') or {}
    yield from _configs_in('visualizer', visualizer, VISUALIZERS)
    yield from _configs_in('visualizer.vis_backends', visualizer.get('vis_backends'), VISBACKENDS)


def _configs_in(
    key: str, value: Any, registry: Registry
) -> Iterator[tuple[str, dict[str, Any], Registry]]:
    """``(key, config, registry)`` of a config, or of each config in a list."""
    if isinstance(value, dict):
        yield key, value, registry
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            if isinstance(each, dict):
                yield f'{key}.{index}', each, registry
