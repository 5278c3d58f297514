"""What makes a teacher's pass cheaper: half precision, memory format, compilation."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from mmdet.models.dense_heads import DETRHead, TOODHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import Tensor, nn

from ..errors import ConfigError, UserError, did_you_mean
from ..nested import map_tensors, to_float32
from ..recorder import Recorder

PRECISIONS = dict(bfloat16=torch.bfloat16, float16=torch.float16)
# What is compiled; heads differ too much from each other, and their towers are short.
COMPILED = ('backbone', 'neck')
# How operators say that they know no half precision, or no channels-last format.
HALF_FAULT = re.compile(r'BFloat16|Half|bfloat16|float16|same dtype|scalar type')
FORMAT_FAULT = re.compile(r'view size is not compatible|must be contiguous|not contiguous')


class TeacherSpeed:
    """How a teacher runs; what it computes stays the same but for rounding.

    Three things never run in half precision: mmcv's operators (RoIAlign, deformable convolutions and
    attention), which know no bfloat16; what turns outputs into proposals; and the last layers of a detection
    transformer, whose boxes are fractions of an image, a picture of 1000 pixels being finer than bfloat16's
    eight bits. mmcv's operators also read memory as if it were contiguous, so they get it that way.
    A teacher that calls such operators as functions and not as modules, as mmdet's TOOD does in its head
    (which is provided for), must be left in the default format.

    Args:
        name: How messages call the teacher's config, e.g. ``teacher``.
        amp: ``bfloat16`` or ``float16`` runs the teacher under autocast of that type, and False in float32
            also where the student is under autocast. By default it shares the student's.
        channels_last: Whether images and the weights of convolutions are laid out channels last.
        compile: Whether backbone and neck are compiled, or the arguments of ``torch.compile``. Where a loss
            reads something inside of them, the largest modules around it are compiled in their place.

    Raises:
        ConfigError: A value is none of these.
    """

    def __init__(
        self,
        name: str = 'teacher',
        amp: str | bool | None = None,
        channels_last: bool = False,
        compile: bool | dict[str, Any] = False,
    ) -> None:
        if not (amp is None or amp is False or isinstance(amp, str) and amp in PRECISIONS):
            hint = (
                did_you_mean(str(amp), PRECISIONS)
                or f'; it is one of {", ".join(PRECISIONS)} or False'
            )
            raise ConfigError(f'{name}.amp={amp!r} is no precision of autocast{hint}')
        if not isinstance(channels_last, bool):
            raise ConfigError(f'{name}.channels_last={channels_last!r} is neither True nor False')
        self.name = name
        self.amp = amp
        self.channels_last = channels_last
        #: Arguments of ``torch.compile``; None where nothing is compiled.
        self.compile_options = _compile_options(name, compile)
        # Of each module that is compiled what shadowed its forward before.
        self._compiled: dict[nn.Module, Any] = {}
        # What losses record, as Recorder.recorded.
        self._recorded: set[tuple[nn.Module, str | None]] = set()
        self._is_settled = False

    # ------------------------------------------------------------------ when the teacher is built

    def apply_to(self, detector: nn.Module) -> None:
        """Lay out a teacher's weights, and see to the modules that need another precision or format."""
        half = isinstance(self.amp, str)
        if self.channels_last:
            convert_weights(detector)
        for module in detector.modules() if half or self.channels_last else ():
            if _is_operator(module) or (half and isinstance(module, DETRHead)):
                module.__dict__['forward'] = self._guarded(module.forward)
            if half and isinstance(module, BaseDenseHead) and hasattr(module, 'predict_by_feat'):
                module.__dict__['predict_by_feat'] = self._guarded(module.predict_by_feat)

    def _guarded(self, function: Callable) -> Callable:
        """The same function, in float32 and on contiguous memory."""
        half, channels_last = isinstance(self.amp, str), self.channels_last

        def plain(value: Tensor) -> Tensor:
            value = value.contiguous() if channels_last else value
            return to_float32(value) if half else value

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = map_tensors(plain, args), map_tensors(plain, kwargs)
            if not half:
                return function(*args, **kwargs)
            with torch.autocast(_device_type((args, kwargs)), enabled=False):
                return function(*args, **kwargs)

        return guarded

    # ------------------------------------------------------------------ before a pass

    def respect(self, recorder: Recorder) -> None:
        """Leave uncompiled from now on what a recorder looks into."""
        new = set(recorder.recorded) - self._recorded
        if new:
            self._recorded |= new
            self._is_settled = False

    def images(self, inputs: Tensor) -> Tensor:
        """Images in the format that the teacher takes, shape (N, 3, H, W)."""
        if not self.channels_last:
            return inputs
        return inputs.contiguous(memory_format=torch.channels_last)

    @contextmanager
    def running(self, detector: nn.Module, device: torch.device) -> Iterator[None]:
        """A context in which the teacher runs.

        Raises:
            ConfigError: Its device or one of its operators does not support what the config asks for.
        """
        if self.compile_options is not None and not self._is_settled:
            self._compile(detector)
        try:
            with self._autocast(device):
                yield
        except RuntimeError as error:
            message = None if isinstance(error, UserError) else self._explain(error)
            if message is None:
                raise
            raise ConfigError(message) from error

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        if self.amp is None:
            return nullcontext()
        if self.amp is False:
            return torch.autocast(device.type, enabled=False)
        if self.amp == 'float16' and device.type == 'cpu':
            raise ConfigError(
                f"{self.name}.amp='float16' is for GPUs: on the CPU torch has too few operators of it; "
                f"use 'bfloat16'"
            )
        try:
            return torch.autocast(device.type, dtype=PRECISIONS[self.amp])
        except RuntimeError as error:
            raise ConfigError(f"{self.name}.amp='{self.amp}': {error}") from None

    def _explain(self, error: RuntimeError) -> str | None:
        """What the person at the keyboard can do about an error, or None if it lies elsewhere."""
        said = str(error).strip().split('\n')[0]
        if self.compile_options is not None:
            from torch._dynamo.exc import TorchDynamoException

            if isinstance(error, TorchDynamoException):
                if 'InvalidCxxCompiler' in said:
                    return (
                        f'{self.name}.compile: on the CPU torch.compile needs a C++ compiler, and found '
                        f'none; install g++, name another in the variable CXX, or leave compile out'
                    )
                return (
                    f'{self.name}.compile: torch.compile failed ({said}); on a GPU it needs Triton, on the '
                    f"CPU g++ and Python's headers; choose another backend or leave compile out"
                )
        if isinstance(self.amp, str) and HALF_FAULT.search(said):
            return (
                f"{self.name}.amp='{self.amp}': the teacher has an operator that does not run in half "
                f'precision ({said}); leave amp out'
            )
        if self.channels_last and FORMAT_FAULT.search(said):
            return (
                f'{self.name}.channels_last: the teacher has an operator that does not take this format '
                f'({said}); leave channels_last out'
            )
        return None

    # ------------------------------------------------------------------ compilation

    def _compile(self, detector: nn.Module) -> None:
        """Compile what can be, and what had been compiled but is now recorded inside no longer.

        A compiled module does not run hooks of the modules inside of it, but its own ``forward`` alone is
        compiled, so that its own hooks are not part of that.
        """
        tops = [getattr(detector, name, None) for name in COMPILED]
        wanted = [unit for top in tops if isinstance(top, nn.Module) for unit in self._units(top)]
        for module in set(self._compiled) - set(wanted):
            shadow = self._compiled.pop(module)
            module.__dict__.pop('forward')
            if shadow is not None:
                module.__dict__['forward'] = shadow
        for module in wanted:
            if module not in self._compiled:
                self._compiled[module] = module.__dict__.get('forward')
                module.__dict__['forward'] = torch.compile(module.forward, **self.compile_options)
        self._is_settled = True

    def _units(self, module: nn.Module) -> Iterator[nn.Module]:
        """The largest modules in which nothing is recorded; single layers are not worth compiling."""
        recorded = {each for each, _ in self._recorded}
        has_method = any(each is module and method for each, method in self._recorded)
        inside = any(each in recorded for each in module.modules() if each is not module)
        if inside or has_method or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            for child in module.children():
                yield from self._units(child)
        elif any(True for _ in module.children()):
            yield module


def convert_weights(detector: nn.Module) -> nn.Module:
    """Lay out the weights of convolutions channels last, in place, but those inside mmcv's operators."""
    if not _is_operator(detector):
        if isinstance(detector, (nn.Conv2d, nn.ConvTranspose2d)):
            weight = detector.weight
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        for child in detector.children():
            convert_weights(child)
    return detector


def _is_operator(module: nn.Module) -> bool:
    """Whether compiled code of mmcv runs in a module."""
    # TOOD's head calls a deformable convolution as a function.
    return isinstance(module, (BaseRoIExtractor, TOODHead)) or any(
        base.__module__.startswith('mmcv.ops') for base in type(module).__mro__
    )


def _device_type(value: Any) -> str:
    found: list[str] = []
    map_tensors(lambda each: found.append(each.device.type) or each, value)
    return found[0] if found else 'cpu'


def _compile_options(name: str, given: Any) -> dict[str, Any] | None:
    if given is None or given is False:
        return None
    if given is not True and not isinstance(given, dict):
        raise ConfigError(
            f'{name}.compile={given!r} is neither True nor False nor arguments of torch.compile'
        )
    options = {} if given is True else dict(given)
    known = [key for key in inspect.signature(torch.compile).parameters if key != 'model']
    for key in options:
        if key not in known:
            raise ConfigError(
                f'{name}.compile.{key}: torch.compile takes no such{did_you_mean(key, known)}'
            )
    try:
        torch.compile(_nothing, **options)  # checks backend, mode and options
    except (RuntimeError, ValueError, TypeError) as error:
        backends: Iterable[str] = torch.compiler.list_backends(exclude_tags=())
        hint = (
            did_you_mean(str(options.get('backend')), backends) if 'backend' in str(error) else ''
        )
        said = str(error).strip().split('\n')[0]
        raise ConfigError(f'{name}.compile: {said}{hint}') from None
    return options


def _nothing() -> None:
    """Stands in for a model where only the options are checked."""
