"""What mmkd adds to mmengine's training loop."""

from .distillation import DistillationHook, add_distillation_hook, add_hooks
from .guard import GuardHook, NonFiniteError

__all__ = [
    'DistillationHook',
    'GuardHook',
    'NonFiniteError',
    'add_distillation_hook',
    'add_hooks',
]
