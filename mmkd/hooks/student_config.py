"""The plain student's config, which its checkpoints belong to."""

from __future__ import annotations

import copy
from typing import Any

from mmdet.registry import DATASETS, METRICS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS
from mmengine.config import Config

# In the work directory of a distillation.
STUDENT_FILE = 'student.py'
PACKAGE = __name__.partition('.')[0]
# What stands in for parts of mmkd that weights and predictions do not depend on, and options to leave out.
PLAIN = {
    'ClassSubsetDataset': ('CocoDataset', ('empty_images',)),
    'CocoF1Metric': ('CocoMetric', ('score_thr',)),
    'StudentFSDPStrategy': ('FSDPStrategy', ()),
}
# Weights come from the checkpoint.
INITIALIZERS = ('ConvertedCheckpoint',)
OF_THE_RUN = ('work_dir', 'load_from', 'resume', 'launcher', 'experiment_name')


def has_student(config: Config) -> bool:
    """Whether a config declares a student; a runner that is given a built model may have none."""
    return bool((config.get('model') or {}).get('student'))


def student_config(config: Config) -> Config:
    """The config of the student alone.

    It runs without mmkd, unless the student itself has modules of mmkd; then ``custom_imports`` names it.

    Args:
        config: A config that distils; it is not changed.
    """
    content = copy.deepcopy(config.to_dict())
    content['model'] = content['model']['student']
    for key in OF_THE_RUN:
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
    content = _plain(content)
    imports = content.get('custom_imports') or {}
    named = imports.get('imports') or []
    named = [named] if isinstance(named, str) else list(named)
    kept = [name for name in named if name.partition('.')[0] != PACKAGE or _needs_package(content)]
    content.pop('custom_imports', None)
    if kept:
        content['custom_imports'] = dict(imports, imports=kept)
    return Config(content)


def _plain(node: Any) -> Any:
    """A part of a config with MMDetection's types in place of mmkd's."""
    if isinstance(node, (list, tuple)):
        return type(node)(_plain(each) for each in node)
    if not isinstance(node, dict):
        return node
    kind = node.get('type')
    other, options = PLAIN.get(kind, (kind, ())) if isinstance(kind, str) else (kind, ())
    found = {key: _plain(value) for key, value in node.items() if key not in options}
    if other != kind:
        found['type'] = other
    initial = found.get('init_cfg')
    if isinstance(initial, dict) and initial.get('type') in INITIALIZERS:
        found['init_cfg'] = None
    return found


def _needs_package(node: Any) -> bool:
    """Whether a part of a config names a type that mmkd registers."""
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
