"""The numeric precision of a teacher's forward pass."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from mmdet.models.dense_heads import DETRHead, TOODHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import nn

from ..errors import ConfigError, UserError, did_you_mean
from ..method_override import MethodOverride
from ..nested import map_tensors, tensors_of, to_float32
from ..types import Detector

PRECISIONS = dict(bfloat16=torch.bfloat16, float16=torch.float16)
# Error messages of operators that do not support half precision.
UNSUPPORTED_DTYPE = re.compile(r'BFloat16|Half|bfloat16|float16|same dtype|scalar type')


class TeacherPrecision:
    """Runs a teacher under autocast. The outputs change only by rounding.

    Three kinds of modules always run in float32:

    - mmcv's operators (RoIAlign, deformable convolutions and attention), which do not support bfloat16;
    - the methods that convert outputs to proposals;
    - the heads of detection transformers. Their boxes are fractions of an image, and bfloat16 has eight
      significant bits: in an image of 1000 pixels it resolves 4 pixels.

    Args:
        name: The config key of the teacher in messages, e.g. ``teacher``.
        amp: ``bfloat16`` or ``float16``: autocast of this type. False: float32, even if the student runs
            under autocast. None: the student's autocast.

    Raises:
        ConfigError: ``amp`` has another value.
    """

    def __init__(self, name: str = 'teacher', amp: str | bool | None = None) -> None:
        if not (amp is None or amp is False or isinstance(amp, str) and amp in PRECISIONS):
            raise ConfigError(
                f'{name}.amp: must be one of {", ".join(map(repr, PRECISIONS))}, False or None, got '
                f'{amp!r}{did_you_mean(str(amp), PRECISIONS)}'
            )
        self.name = name
        self.amp = amp

    def apply_to(self, detector: Detector) -> None:
        """Make the modules of a teacher that need float32 always run in float32."""
        for module in detector.modules() if isinstance(self.amp, str) else ():
            if _is_operator(module) or isinstance(module, DETRHead):
                MethodOverride(module, 'forward', _in_float32(module.forward))
            if isinstance(module, BaseDenseHead) and hasattr(module, 'predict_by_feat'):
                MethodOverride(module, 'predict_by_feat', _in_float32(module.predict_by_feat))

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """Return a context in which the teacher runs with the precision of ``amp``.

        Raises:
            ConfigError: The device or an operator of the teacher does not support ``amp``.
        """
        try:
            with self._autocast(device):
                yield
        except RuntimeError as error:
            message = str(error).strip().split('\n')[0]
            half = isinstance(self.amp, str) and not isinstance(error, UserError)
            if not half or not UNSUPPORTED_DTYPE.search(message):
                raise
            raise ConfigError(
                f'{self.name}.amp: the teacher has an operator that does not support {self.amp} '
                f'({message}); remove amp'
            ) from error

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        if not isinstance(self.amp, str):
            return torch.autocast(device.type, enabled=False)
        if self.amp == 'float16' and device.type == 'cpu':
            raise ConfigError(
                f"{self.name}.amp: 'float16' needs a GPU, because torch has too few float16 operators on the "
                f"CPU; use 'bfloat16'"
            )
        try:
            return torch.autocast(device.type, dtype=PRECISIONS[self.amp])
        except RuntimeError as error:
            raise ConfigError(f'{self.name}.amp: {self.amp!r} cannot be used: {error}') from None


def _in_float32(function: Callable) -> Callable:
    """Wrap a function so that its arguments are float32 and autocast is off."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = map_tensors(to_float32, args), map_tensors(to_float32, kwargs)
        with torch.autocast(_device_type((args, kwargs)), enabled=False):
            return function(*args, **kwargs)

    return wrapped


def _is_operator(module: nn.Module) -> bool:
    """Whether a module runs compiled code of mmcv."""
    # TOOD's head calls a deformable convolution as a function.
    return isinstance(module, (BaseRoIExtractor, TOODHead)) or any(
        base.__module__.startswith('mmcv.ops') for base in type(module).__mro__
    )


def _device_type(value: Any) -> str:
    found = tensors_of(value)
    return found[0].device.type if found else 'cpu'
