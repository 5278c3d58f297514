"""Check that a detector matches its data and its weights."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from typing import Any
from urllib.parse import urlparse

import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import (
    CheckpointLoader,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)
from torch import nn

from ..checkpoints import first_line, hash_mismatch, key_prefix, read_checkpoint, summarize_keys
from ..datasets.data_root import iter_leaves
from ..errors import CheckpointError, ConfigError, UserError
from ..file_kind import wrong_file_hint
from .advice import Advice
from .annotations import LARGE_FILE
from .classes import join_names
from .coco_file import read_coco, require_key
from .planned_run import PlannedRun

# Modules in which `num_classes` is not the number of classes of the data.
OTHER_CLASSES = ('rpn_head', 'semantic_head', 'panoptic', 'backbone', 'neck', 'language_model')

# Entries of a checkpoint that mmengine's Runner.resume reads in addition to the weights.
RESUMED = ('meta', 'message_hub')


def check_num_classes(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Every head has as many classes as the data."""
    named = [data for data in run.data if isinstance(data.classes, (tuple, list))]
    if not named or not run.detector_config:
        return
    data = named[0]
    if data.takes_text:
        return
    count = len(data.classes)
    # With panoptic data, box heads detect only the things (countable classes).
    things = len(data.dataset.metainfo.get('thing_classes') or data.classes)
    for path, module in run.detector.named_modules():
        found = getattr(module, 'num_classes', None)
        other = any(part.startswith(OTHER_CLASSES) for part in path.split('.')) or 'loss' in path
        if (
            not isinstance(found, int)
            or found in (count, things)
            or other
            or _is_class_agnostic(module)
        ):
            continue
        yield ConfigError(
            f'{run.detector_key}.{path}.num_classes: must be {count}, the number of classes of {data.key} '
            f'({", ".join(map(str, data.classes[:4]))}{", …" if count > 4 else ""}), got {found}; set it to '
            f'{count}'
        )


def _is_class_agnostic(module: nn.Module) -> bool:
    """Whether a head detects objects of any class, or predicts one mask for all classes."""
    return 'RPN' in type(module).__name__ or bool(getattr(module, 'class_agnostic', False))


def check_evaluation(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The annotation files of COCO metrics have the keys that COCO evaluation reads, and match the data."""
    contents = {data.path: data.coco for data in run.data if data.coco is not None}
    seen = set()
    for mode in run.modes:
        evaluator = run.cfg.get(f'{mode}_evaluator') or ()
        metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
        for index, metric in enumerate(metrics):
            kind = METRICS.get(metric.get('type')) if isinstance(metric.get('type'), str) else None
            path = metric.get('ann_file')
            if not (isinstance(kind, type) and issubclass(kind, CocoMetric)) or not path:
                continue
            if path not in contents and (
                not os.path.isfile(path)  # remote, or missing, which check_data_files reports
                or (not run.whole and os.path.getsize(path) > LARGE_FILE)
            ):
                continue
            content = contents[path] = contents.get(path) or read_coco(path)
            if not metric.get('format_only') and path not in seen:
                seen.add(path)
                require_key(path, 'annotations', content['annotations'], 'iscrowd')
            number = f'.{index}' if isinstance(evaluator, (list, tuple)) else ''
            key = f'{mode}_evaluator{number}.ann_file'
            yield from _check_metric_data(run, mode, key, path, content)


def _check_metric_data(
    run: PlannedRun, mode: str, key: str, path: str, content: dict[str, list[dict]]
) -> Iterator[UserError]:
    """Report a metric that would compare predictions with annotations of other images or classes."""
    datasets = [data for data in run.data if data.mode == mode]
    if len(datasets) != 1 or datasets[0].path == path or not datasets[0].kept:
        return
    (data,) = datasets
    known = {image['id'] for image in content['images']}
    absent = [image for image in data.kept if image.get('img_id') not in known]
    if absent:
        yield ConfigError(
            f'{key}: {path} must have the images of {data.path}, but lacks {len(absent)} of '
            f'{len(data.kept)} (the first: id {absent[0].get("img_id")!r}); name the same file'
        )
    elif isinstance(data.classes, (tuple, list)) and not data.takes_text:
        # CocoMetric uses the categories with these names in the order of the file.
        names = [each['name'] for each in content['categories'] if each['name'] in data.classes]
        if names != [name for name in data.classes if name in names]:
            yield ConfigError(
                f'{key}: {path} must list the categories in the order of {data.path}, '
                f'{join_names(data.classes)}, got {join_names(names)}; name the same file'
            )


def check_pretrained(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Pretrained weights can be loaded or downloaded, and match the modules that they initialise."""
    if not run.trains or run.cfg.get('load_from'):
        return
    for owner, name, value, key in iter_leaves(run.detector_config, run.detector_key):
        known = isinstance(value, str) and ('://' in value or os.path.isfile(value))
        if name != 'checkpoint' or not known or owner.get('type') != 'Pretrained':
            continue
        remote = '://' in value
        try:
            content = CheckpointLoader.load_checkpoint(value, map_location='cpu', logger='silent')
        except Exception as error:  # each backend raises its own kinds
            hint = (
                'download it on another machine and name the file'
                if remote
                else 'name another file'
            )
            reason = '' if remote else wrong_file_hint(value)
            yield CheckpointError(
                f'{key}: {value} cannot be loaded{reason or f" ({first_line(error)})"}; {hint} with '
                f'--cfg-options {key}=FILE'
            )
            continue
        problem = hash_mismatch(_download_path(value)) if remote else None
        if problem:
            yield Advice(
                f'{key}: {problem}; if the file is damaged, delete it to download it again'
            )
        yield from _check_pretrained_entries(run, owner, key, content)


def _check_pretrained_entries(
    run: PlannedRun, owner: dict[str, Any], key: str, content: dict[str, Any]
) -> Iterator[UserError | Advice]:
    """Report pretrained weights without entries of the module that they initialise."""
    path = key.removeprefix(f'{run.detector_key}.').rpartition('init_cfg')[0].strip('.')
    try:
        module = run.detector.get_submodule(path)
    except AttributeError:  # a config inside a list: its modules have other names
        return
    if type(module).init_weights is not BaseModule.init_weights:  # it may convert the keys
        return
    state = content.get('state_dict', content)
    prefix = owner.get('prefix') or ''
    given = f'{prefix.rstrip(".")}.' if prefix else ''  # as in mmengine
    names = {re.sub(r'^module\.', '', name).removeprefix(given) for name in state}
    own = module.state_dict()
    fitting = [name for name in own if name in names]
    if own and not fitting:
        yield CheckpointError(
            f'{key}: {owner["checkpoint"]} has none of the {len(own)} entries of '
            f'{run.detector_key}.{path}, but {summarize_keys("others", sorted(names))}; name weights of a '
            f'{type(module).__name__}, or set prefix to the prefix of its keys'
        )
    else:
        yield from _warn_if_few_entries(
            f'{key}: {owner["checkpoint"]}', f'{run.detector_key}.{path}', own, fitting
        )


def _warn_if_few_entries(
    file: str, module: str, own: Collection[str], fitting: Collection[str]
) -> Iterator[Advice]:
    """Warn about weights that have less than half of a module's entries."""
    if len(fitting) < 0.5 * len(own):
        absent = [name for name in own if name not in fitting]
        yield Advice(
            f'{file} has {len(fitting)} of the {len(own)} entries of {module}; '
            f'{summarize_keys("are initialised randomly", absent)}'
        )


def _download_path(name: str) -> str:
    """Path at which torch hub stores the file of a URL or of a name such as ``torchvision://resnet50``."""
    scheme, _, rest = name.partition('://')
    models = dict.fromkeys(('torchvision', 'modelzoo'), get_torchvision_models)
    models.update(dict.fromkeys(('open-mmlab', 'openmmlab'), get_external_models))
    models['mmcls'] = get_mmcls_models
    url = models[scheme]().get(rest, '') if scheme in models else name
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    return os.path.join(folder, os.path.basename(urlparse(url).path))


def check_load_from(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The checkpoint of `load_from` has weights of this detector, and the state that `resume` needs."""
    path = run.cfg.get('load_from')
    if not path or not run.trains:  # a test is given a checkpoint in its place
        return
    # Strategies of mmengine write checkpoints in formats of their own.
    if run.cfg.get('resume') and run.cfg.get('runner_type'):
        return
    hint = 'name weights of the same detector, or remove it'
    content = read_checkpoint(path, f"load_from='{path}'", hint)
    found = content['state_dict']
    absent = [key for key in RESUMED if not content.get(key)]
    if run.cfg.get('resume') and absent:
        yield CheckpointError(
            f'load_from: {path} has no {" and no ".join(absent)}, so the run cannot resume from it; set '
            f'resume=False to load only its weights'
        )
    own = run.detector.state_dict()
    fitting = [key for key in own if key in found and found[key].shape == own[key].shape]
    if not fitting:
        prefix = key_prefix(found, own)
        hint = (
            f"its keys start with '{prefix}'; save them without it"
            if prefix
            else 'name weights of the same detector'
        )
        yield CheckpointError(
            f'load_from: {path} has none of the {len(own)} entries of {run.detector_key}, but '
            f'{summarize_keys("others", list(found))}; {hint}'
        )
    else:
        yield from _warn_if_few_entries(f'load_from: {path}', run.detector_key, own, fitting)
