"""What mmkd adds to mmengine's training loop."""

from .distillation import STATE, DistillationHook, add_distillation_hook, add_hooks
from .guard import GuardHook, NonFiniteError

__all__ = [
    'STATE',
    'DistillationHook',
    'GuardHook',
    'NonFiniteError',
    'add_distillation_hook',
    'add_hooks',
]
