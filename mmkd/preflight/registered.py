"""Whether what a config names beside data and detector is registered, and takes the options given."""

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
from .annotations import words_of
from .planned_run import PlannedRun

EVALUATED = ('dataloader', 'cfg', 'evaluator')
# Of a data loader, what mmengine builds by itself.
NOT_OF_TORCH = (
    *('dataset', 'sampler', 'batch_sampler', 'collate_fn', 'worker_init_fn'),
    'num_batch_per_epoch',
)
# What a constructor raises at values that it does not take.
WRONG = (TypeError, ValueError, KeyError, AssertionError)
# Metrics that are built without reading or downloading anything.
BUILT = (CocoMetric, VOCMetric)
# Samplers of iterations.
ENDLESS = (InfiniteSampler, MultiSourceSampler)
# What mmengine's constructor of optimizers reads.
PARAMWISE = (
    *('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult'),
    *('dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate'),
)
# The prefix, the values of `metric` and the names of what a metric gives for each.
SCORES: dict[Any, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    CocoMetric: (
        'coco',
        ('bbox', 'segm'),
        ('{}_mAP', '{}_mAP_50', '{}_mAP_75', '{}_mAP_s', '{}_mAP_m', '{}_mAP_l'),
    ),
}
# For schedules in a run of unknown length.
LONG = 10**9
# Of MMDetection 2, and what stands in their place.
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
OLD_LOADER = dict(samples_per_gpu='batch_size', workers_per_gpu='num_workers')


def check_types(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Optimizer, schedules, samplers, metrics and hooks are registered, and no part of a loop is missing."""
    scope = run.cfg.get('default_scope') or 'mmdet'
    for key, config, registry in _parts(run):
        kind = config.get('type')
        if not isinstance(kind, str):
            continue
        with registry.switch_scope_and_registry(scope) as scoped:
            found = scoped.get(kind)
            if found is not None:
                yield from _misfit(run, key, config, registry, found)
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
    yield from _old_keys(run)
    yield from _unmeasured(run)
    for mode in ('train', 'val', 'test') if run.trains else ('val', 'test'):
        parts = [f'{mode}_{part}' for part in EVALUATED]
        if mode == 'train':
            parts[-1] = 'optim_wrapper'
        absent = [part for part in parts if run.cfg.get(part) is None]
        if 0 < len(absent) < len(parts):
            others = ' and '.join(part for part in parts if part not in absent)
            yield ConfigError(
                f'{absent[0]}: must be given beside {others}, got None; give it, or take those out'
            )


def check_loaders(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Data loaders take their options."""
    for mode in run.modes:
        key = f'{mode}_dataloader'
        config = run.cfg.get(key) or {}
        loader = {k: v for k, v in config.items() if k not in NOT_OF_TORCH}
        try:
            with warnings.catch_warnings():  # of too few CPUs, as the run warns, too
                warnings.simplefilter('ignore')
                given: Any = [0]  # in place of a data set
                DataLoader(given, sampler=given if config.get('sampler') else None, **loader)
        except (TypeError, ValueError) as error:
            hint = ''.join(
                f'; MMDetection 3 calls {old} {now}'
                for old, now in OLD_LOADER.items()
                if old in loader
            )
            yield ConfigError(f'{key}: {words_of(error)}{hint}')


def _old_keys(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Keys of MMDetection 2, which MMDetection 3 passes over."""
    found = {old: now for old, now in OLD_KEYS.items() if isinstance(run.cfg.get(old), dict)}
    wrapper = run.cfg.get('optim_wrapper')
    if wrapper and run.cfg.get('optimizer') == wrapper.get('optimizer'):
        found.pop('optimizer', None)  # a name for what is used
    if found and run.trains:
        trained = any(
            run.cfg.get(key) for key in ('train_dataloader', 'train_cfg', 'optim_wrapper')
        )
        kind = Advice if trained else ConfigError
        names = ', '.join(found)
        yield kind(
            f'{next(iter(found))}: keys of MMDetection 2 are not read, got {names}; write '
            f'{", ".join(dict.fromkeys(found.values()))}'
        )


def _misfit(
    run: PlannedRun, key: str, config: dict[str, Any], registry: Registry, found: Any
) -> Iterator[UserError | Advice]:
    """What a part does not take, as far as it can be told without the run."""
    given = {k: v for k, v in config.items() if k not in ('type', '_scope_')}
    if registry is HOOKS:
        yield from _wrong_priority(key, given.pop('priority', None))
    if registry is DATA_SAMPLERS and isinstance(found, type) and issubclass(found, ENDLESS):
        yield from _endless(run, key, config)
    if registry is OPTIM_WRAPPERS:
        if 'constructor' in given:  # which may have options of its own there
            return
        yield from _without_effect(run, f'{key}.paramwise_cfg', given.pop('paramwise_cfg', None))
    unknown = _unknown(found, given)
    if unknown:
        hint = did_you_mean(unknown, inspect.signature(found).parameters)
        yield ConfigError(
            f'{key}.{unknown}: {config["type"]} has no such option{hint}; take it out'
        )
        return
    try:
        if registry is OPTIMIZERS:
            _optimizer(config)
        elif registry is PARAM_SCHEDULERS:
            _schedule(run, config)
        elif found is CheckpointHook:
            registry.build(dict(given, type=config['type']))
        elif registry is METRICS and (found in BUILT or found.__module__.startswith('mmkd.')):
            registry.build({**config, **({'ann_file': None} if 'ann_file' in config else {})})
    except WRONG as error:
        if 'process group' not in str(error):  # of a launcher, which has not come to it yet
            yield ConfigError(f'{key}: {config["type"]} cannot be built: {words_of(error)}')
    except Exception:  # noqa: S110  # of devices and packages: the run itself has to try
        pass


def _unknown(found: Any, given: dict[str, Any]) -> str | None:
    """The first option that a class does not have; None if it takes any."""
    try:
        parameters = dict(inspect.signature(found).parameters)
    except (TypeError, ValueError):  # of C code
        return None
    if found is CheckpointHook:  # which passes them on, after the first epoch
        parameters |= inspect.signature(Runner.save_checkpoint).parameters
    elif any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return None
    return next((name for name in given if name not in parameters), None)


def _endless(run: PlannedRun, key: str, config: dict[str, Any]) -> Iterator[ConfigError]:
    of_training = key.startswith('train_')
    if not of_training or run.epochs is not None:
        loop = 'an epoch' if of_training else 'an evaluation'
        yield ConfigError(
            f'{key}.type: {config["type"]} never comes to an end, and so does {loop} with it; write '
            f"'DefaultSampler'"
        )


def _without_effect(run: PlannedRun, key: str, options: Any) -> Iterator[Advice]:
    """Options for single weights that are misspelled, which mmengine passes over."""
    if not isinstance(options, dict):
        return
    for name in options:
        if name not in PARAMWISE:
            yield Advice(f'{key}.{name}: is not read{did_you_mean(name, PARAMWISE)}')
    try:
        names = [name for name, _ in run.detector.named_parameters()]
    except Exception:  # which another check reports
        return
    parts = {part for name in names for part in (name, *name.split('.'))}
    for name in options.get('custom_keys') or ():
        # Many configs name parts that only some detectors have, such as norms.
        near = difflib.get_close_matches(name, parts, n=1, cutoff=0.8)
        if near and not any(name in each for each in names):
            yield Advice(
                f'{key}.custom_keys: no weight of {run.detector_key} has {name!r} in its name; near: '
                f'{near[0]}'
            )


def _unmeasured(run: PlannedRun) -> Iterator[ConfigError]:
    """A score that no metric gives stops a run after its first evaluation."""
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


def _wrong_priority(key: str, priority: Any) -> Iterator[ConfigError]:
    try:
        get_priority(priority if priority is not None else 'NORMAL')
    except (KeyError, TypeError, ValueError):
        names = ', '.join(each.name for each in Priority)
        yield ConfigError(
            f'{key}.priority: must be a number from 0 to 100 or one of {names}, got {priority!r}'
        )


def _optimizer(config: Any) -> Any:
    return OPTIMIZERS.build(dict(config, params=[torch.nn.Parameter(torch.zeros(1))]))


def _schedule(run: PlannedRun, config: dict[str, Any]) -> None:
    given = (run.cfg.get('optim_wrapper') or {}).get('optimizer')
    try:
        optimizer = _optimizer(given)
    except Exception:  # which is reported where it stands, or one of several
        return
    by_epoch = config.get('by_epoch', True)
    end = run.epochs if by_epoch else run.iterations
    defaults = dict(optimizer=optimizer, epoch_length=1, end=end or LONG)
    PARAM_SCHEDULERS.build(dict(config), default_args=defaults)


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
    visualizer = cfg.get('visualizer') or {}
    yield from _of('visualizer', visualizer, VISUALIZERS)
    yield from _of('visualizer.vis_backends', visualizer.get('vis_backends'), VISBACKENDS)


def _of(key: str, value: Any, registry: Registry) -> Iterator[tuple[str, dict[str, Any], Registry]]:
    """A config, or those of a list, with its key."""
    if isinstance(value, dict):
        yield key, value, registry
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            if isinstance(each, dict):
                yield f'{key}.{index}', each, registry
