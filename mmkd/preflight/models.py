"""Whether a detector fits its data and its weights."""

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

from ..checkpoints import differs_from_name, first_line, listing, prefix_of, read_checkpoint
from ..datasets.data_root import leaves
from ..errors import CheckpointError, ConfigError, UserError
from ..file_kind import mistaken_file
from .advice import Advice
from .annotations import LARGE_FILE
from .classes import listed
from .coco_file import read_coco, require_key
from .planned_run import PlannedRun

# Modules with a `num_classes` of their own meaning.
OTHER_CLASSES = ('rpn_head', 'semantic_head', 'panoptic', 'backbone', 'neck', 'language_model')

# What mmengine's Runner.resume reads beside weights.
RESUMED = ('meta', 'message_hub')


def check_num_classes(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Every head is built for as many classes as the data has."""
    named = [data for data in run.data if isinstance(data.classes, (tuple, list))]
    if not named or not run.detector_config:
        return
    data = named[0]
    if data.takes_text:
        return
    count = len(data.classes)
    # Of panoptic data the box heads detect the countable ones.
    things = len(data.dataset.metainfo.get('thing_classes') or data.classes)
    for path, module in run.detector.named_modules():
        found = getattr(module, 'num_classes', None)
        other = any(part.startswith(OTHER_CLASSES) for part in path.split('.')) or 'loss' in path
        if (
            not isinstance(found, int)
            or found in (count, things)
            or other
            or _knows_no_classes(module)
        ):
            continue
        yield ConfigError(
            f'{run.detector_key}.{path}.num_classes: must be {count}, the number of classes of {data.key} '
            f'({", ".join(map(str, data.classes[:4]))}{", …" if count > 4 else ""}), got {found}; set it to '
            f'{count}'
        )


def _knows_no_classes(module: nn.Module) -> bool:
    """Whether a head finds objects of any class, or has one mask for all."""
    return 'RPN' in type(module).__name__ or bool(getattr(module, 'class_agnostic', False))


def check_evaluation(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The annotation files of COCO metrics have what COCO's evaluation reads, and belong to the data."""
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
                not os.path.isfile(path)  # elsewhere, or missing, which the check of files reports
                or (not run.whole and os.path.getsize(path) > LARGE_FILE)
            ):
                continue
            content = contents[path] = contents.get(path) or read_coco(path)
            if not metric.get('format_only') and path not in seen:
                seen.add(path)
                require_key(path, 'annotations', content['annotations'], 'iscrowd')
            number = f'.{index}' if isinstance(evaluator, (list, tuple)) else ''
            key = f'{mode}_evaluator{number}.ann_file'
            yield from _of_other_data(run, mode, key, path, content)


def _of_other_data(
    run: PlannedRun, mode: str, key: str, path: str, content: dict[str, list[dict]]
) -> Iterator[UserError]:
    """Whether a metric would compare predictions with the annotations of other images or classes."""
    leaves = [data for data in run.data if data.mode == mode]
    if len(leaves) != 1 or leaves[0].path == path or not leaves[0].kept:
        return
    (data,) = leaves
    known = {image['id'] for image in content['images']}
    absent = [image for image in data.kept if image.get('img_id') not in known]
    if absent:
        yield ConfigError(
            f'{key}: {path} must have the images of {data.path}, got {len(absent)} of {len(data.kept)} that '
            f'it has not (the first: id {absent[0].get("img_id")!r}); name the same file'
        )
    elif isinstance(data.classes, (tuple, list)) and not data.takes_text:
        # As CocoMetric does: the categories of these names, in the order of the file.
        names = [each['name'] for each in content['categories'] if each['name'] in data.classes]
        if names != [name for name in data.classes if name in names]:
            yield ConfigError(
                f'{key}: {path} must list the categories in the order of {data.path}, '
                f'{listed(data.classes)}, got {listed(names)}; name the same file'
            )


def check_pretrained(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Pretrained weights can be loaded or downloaded, and are of the modules that start from them."""
    if not run.trains or run.cfg.get('load_from'):
        return
    for owner, name, value, key in leaves(run.detector_config, run.detector_key):
        known = isinstance(value, str) and ('://' in value or os.path.isfile(value))
        if name != 'checkpoint' or not known or owner.get('type') != 'Pretrained':
            continue
        remote = '://' in value
        try:
            content = CheckpointLoader.load_checkpoint(value, map_location='cpu', logger='silent')
        except Exception as error:  # of several libraries, by the kind of URL
            hint = 'download it elsewhere and name the file' if remote else 'name another file'
            reason = '' if remote else mistaken_file(value)
            yield CheckpointError(
                f'{key}: {value} cannot be loaded{reason or f" ({first_line(error)})"}; {hint} with '
                f'--cfg-options {key}=FILE'
            )
            continue
        problem = differs_from_name(_downloaded(value)) if remote else None
        if problem:
            yield Advice(f'{key}: {problem}; delete it if it was damaged, to download it again')
        yield from _of_other_module(run, owner, key, content)


def _of_other_module(
    run: PlannedRun, owner: dict[str, Any], key: str, content: dict[str, Any]
) -> Iterator[UserError | Advice]:
    """Whether pretrained weights have the entries of the module that they are for."""
    path = key.removeprefix(f'{run.detector_key}.').rpartition('init_cfg')[0].strip('.')
    try:
        module = run.detector.get_submodule(path)
    except AttributeError:  # a config inside of a list, whose modules have names of their own
        return
    if type(module).init_weights is not BaseModule.init_weights:  # it converts what it reads
        return
    state = content.get('state_dict', content)
    prefix = owner.get('prefix') or ''
    given = f'{prefix.rstrip(".")}.' if prefix else ''  # as mmengine reads it
    names = {re.sub(r'^module\.', '', name).removeprefix(given) for name in state}
    own = module.state_dict()
    fitting = [name for name in own if name in names]
    if own and not fitting:
        yield CheckpointError(
            f'{key}: {owner["checkpoint"]} has none of the {len(own)} entries of '
            f'{run.detector_key}.{path}, but {listing("others", sorted(names))}; name weights of a '
            f'{type(module).__name__}, or what stands in front of its entries with prefix'
        )
    else:
        yield from _few(f'{key}: {owner["checkpoint"]}', f'{run.detector_key}.{path}', own, fitting)


def _few(
    file: str, module: str, own: Collection[str], fitting: Collection[str]
) -> Iterator[Advice]:
    """Warn of weights that have less than half of a module's entries."""
    if len(fitting) < 0.5 * len(own):
        absent = [name for name in own if name not in fitting]
        yield Advice(
            f'{file} has {len(fitting)} of the {len(own)} entries of {module}; '
            f'{listing("start from random weights", absent)}'
        )


def _downloaded(name: str) -> str:
    """Where torch hub keeps what a URL or a name such as ``torchvision://resnet50`` stands for."""
    scheme, _, rest = name.partition('://')
    models = dict.fromkeys(('torchvision', 'modelzoo'), get_torchvision_models)
    models.update(dict.fromkeys(('open-mmlab', 'openmmlab'), get_external_models))
    models['mmcls'] = get_mmcls_models
    url = models[scheme]().get(rest, '') if scheme in models else name
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    return os.path.join(folder, os.path.basename(urlparse(url).path))


def check_load_from(run: PlannedRun) -> Iterator[UserError | Advice]:
    """What `load_from` names holds weights of this detector, and what resuming needs."""
    path = run.cfg.get('load_from')
    if not path or not run.trains:  # a test is given a checkpoint in its place
        return
    if run.cfg.get('resume') and run.cfg.get('runner_type'):  # of strategies' own form
        return
    hint = 'name weights of the same detector, or take it out'
    content = read_checkpoint(path, f"load_from='{path}'", hint)
    found = content['state_dict']
    absent = [key for key in RESUMED if not content.get(key)]
    if run.cfg.get('resume') and absent:
        yield CheckpointError(
            f'load_from: {path} has no {" and no ".join(absent)} to resume from; start from its weights with '
            f'resume=False'
        )
    own = run.detector.state_dict()
    fitting = [key for key in own if key in found and found[key].shape == own[key].shape]
    if not fitting:
        prefix = prefix_of(found, own)
        hint = (
            f"its keys start with '{prefix}'; save them without it"
            if prefix
            else 'name weights of the same detector'
        )
        yield CheckpointError(
            f'load_from: {path} has none of the {len(own)} entries of {run.detector_key}, but '
            f'{listing("others", list(found))}; {hint}'
        )
    else:
        yield from _few(f'load_from: {path}', run.detector_key, own, fitting)
