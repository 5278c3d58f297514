"""Apply functions to tensors in nested lists, tuples and dicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HALF_DTYPES = (torch.bfloat16, torch.float16)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return the same structure with ``function`` applied to each tensor; other values do not change."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, '_fields'):
        return type(value)(*(map_tensors(function, each) for each in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(function, each) for each in value)
    return value


def to_float32(value: Any) -> Any:
    """Return the same structure with half-precision tensors as float32; other tensors are not copied."""
    return map_tensors(lambda each: each.float() if each.dtype in HALF_DTYPES else each, value)


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in a nested structure, in order."""
    found: list[Tensor] = []
    map_tensors(lambda each: found.append(each) or each, value)  # type: ignore[func-returns-value]
    return found
