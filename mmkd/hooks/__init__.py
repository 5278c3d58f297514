"""Hooks that mmkd adds to mmengine's training loop."""

from .comparison import ComparisonHook
from .distillation import STATE, DistillationHook, add_distillation_hook, add_hooks
from .guard import GuardHook, NonFiniteError
from .student_config import STUDENT_FILE

__all__ = [
    'STATE',
    'STUDENT_FILE',
    'ComparisonHook',
    'DistillationHook',
    'GuardHook',
    'NonFiniteError',
    'add_distillation_hook',
    'add_hooks',
]
