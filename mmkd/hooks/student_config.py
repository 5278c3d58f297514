"""The config of the plain student, which matches its checkpoints."""

from __future__ import annotations

import copy
from typing import Any

from mmdet.registry import DATASETS, METRICS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS
from mmengine.config import Config

# Name of the student's config in the work directory of a distillation.
STUDENT_FILE = 'student.py'
PACKAGE = __name__.partition('.')[0]
# Types of mmkd that do not affect weights and predictions: the type of MMDetection that replaces each, and
# the options that are removed.
REPLACEMENTS = {
    'ClassSubsetDataset': ('CocoDataset', ('empty_images',)),
    'CocoF1Metric': ('CocoMetric', ('score_thr',)),
    'StudentFSDPStrategy': ('FSDPStrategy', ()),
}
# `init_cfg` types that are removed, as the weights come from the checkpoint.
INITIALIZERS = ('ConvertedCheckpoint',)
# Keys of one run, which are removed.
RUN_KEYS = ('work_dir', 'load_from', 'resume', 'launcher', 'experiment_name')


def has_student(config: Config) -> bool:
    """Whether a config declares a student; the config of a runner with an already built model may not."""
    return bool((config.get('model') or {}).get('student'))


def student_config(config: Config) -> Config:
    """The config of the plain student.

    It runs without mmkd, unless the student contains modules of mmkd; then ``custom_imports`` imports mmkd.

    Args:
        config: The config of a distillation; it is not changed.
    """
    content = copy.deepcopy(config.to_dict())
    content['model'] = content['model']['student']
    for key in RUN_KEYS:
        content.pop(key, None)
    hooks = ('ComparisonHook', 'DistillationHook', 'GuardHook')
    content['default_hooks'] = {
        name: hook
        for name, hook in (content.get('default_hooks') or {}).items()
        if not hook or hook.get('type') not in hooks
    }
    content['custom_hooks'] = [
        hook for hook in content.get('custom_hooks') or () if hook.get('type') not in hooks
    ]
    content = _without_mmkd(content)
    imports = content.get('custom_imports') or {}
    named = imports.get('imports') or []
    named = [named] if isinstance(named, str) else list(named)
    kept = [name for name in named if name.partition('.')[0] != PACKAGE or _needs_package(content)]
    content.pop('custom_imports', None)
    if kept:
        content['custom_imports'] = dict(imports, imports=kept)
    return Config(content)


def _without_mmkd(node: Any) -> Any:
    """Replace types of mmkd by types of MMDetection in a part of a config."""
    if isinstance(node, (list, tuple)):
        return type(node)(_without_mmkd(each) for each in node)
    if not isinstance(node, dict):
        return node
    kind = node.get('type')
    other, options = REPLACEMENTS.get(kind, (kind, ())) if isinstance(kind, str) else (kind, ())
    found = {key: _without_mmkd(value) for key, value in node.items() if key not in options}
    if other != kind:
        found['type'] = other
    initial = found.get('init_cfg')
    if isinstance(initial, dict) and initial.get('type') in INITIALIZERS:
        found['init_cfg'] = None
    return found


def _needs_package(node: Any) -> bool:
    """Whether a part of a config has a type that mmkd registers."""
    if isinstance(node, (list, tuple)):
        return any(map(_needs_package, node))
    if not isinstance(node, dict):
        return False
    kind = node.get('type')
    if isinstance(kind, str):
        for registry in (MODELS, DATASETS, TRANSFORMS, METRICS, OPTIM_WRAPPER_CONSTRUCTORS):
            found = registry.get(kind)
            if found is not None and found.__module__.partition('.')[0] == PACKAGE:
                return True
    return any(map(_needs_package, node.values()))
