"""Record inputs and outputs of selected modules of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from .errors import ConfigError, PathError, did_you_mean
from .method_override import MethodOverride
from .nested import map_tensors

CAPTURES = ('output', 'input')
# Prefixes that FSDP and activation checkpointing add to the names of modules.
WRAPPERS = re.compile(r'\.?_(fsdp|checkpoint)_wrapped_module\b')


@dataclass(frozen=True)
class Source:
    """The input or output of a module (or method) of a model that is recorded.

    Args:
        module: Path as in ``model.named_modules()``, e.g. ``roi_head.bbox_head.fc_cls``. The empty path is
            the model itself. A ``*`` matches one name between dots: ``neck.fpn_convs.*.conv`` records a
            list with one output per matching module.
        capture: ``output`` or ``input`` of the module's call.
        method: Name of a method of the module. Its result (or, with ``capture='input'``, its arguments)
            is recorded instead of the module's call.
        index: Index into a recorded tuple or list. For inputs: the position of a positional argument, or
            the name of a keyword argument. A list of indices selects further: ``[0, 2]`` is the third
            level of a head's first output. None: the whole output.
        copy: Whether to record a copy of the tensor. Needed if the next layer changes it in place, as most
            activations do.

    Examples:
        >>> from mmkd.recorder import Source
        >>> str(Source.parse('neck.fpn_convs.*.conv'))  # as in `student='neck.fpn_convs.*.conv'`
        'neck.fpn_convs.*.conv'
        >>> str(Source.parse(dict(module='bbox_head', capture='input', index=0)))
        'input of bbox_head[0]'
    """

    module: str
    capture: str = 'output'
    method: str | None = None
    index: int | str | tuple[int | str, ...] | None = None
    copy: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.index, list):
            object.__setattr__(self, 'index', tuple(self.index))
        if self.capture not in CAPTURES:
            raise ConfigError(
                f"capture: must be one of {CAPTURES} for '{self.module}', got {self.capture!r}"
            )
        if self.capture == 'input' and self.index is None:
            raise ConfigError(
                f"index: not given for the input of '{self.module}'; set it to the position or name of the "
                f'argument'
            )

    @classmethod
    def parse(cls, source: Any) -> Source:
        """Return the source for a config value: a module path, or a dict of the arguments above."""
        if isinstance(source, cls):
            return source
        if isinstance(source, str):
            return cls(source)
        try:
            return cls(**dict(source))
        except TypeError as error:
            raise ConfigError(
                f'{dict(source)} is not a valid source: {error}; see mmkd.recorder.Source'
            ) from None

    @property
    def path(self) -> tuple[int | str, ...]:
        """The indices as a tuple, outermost first."""
        if self.index is None:
            return ()
        return self.index if isinstance(self.index, tuple) else (self.index,)

    def __str__(self) -> str:
        name = '.'.join(filter(None, (self.module, self.method and f'{self.method}()')))
        name += ''.join(f'[{step}]' for step in self.path)
        return name if self.capture == 'output' else f'input of {name}'


class Recorder:
    """Records inputs and outputs of modules through forward hooks, inside a ``with`` block.

    Every call of a recorded module inside the block is stored. ``recorder[source]`` returns the value of
    a single call. It returns a list of values if the module was called several times (a head shared by
    feature levels) or if the path matches several modules. The hooks are removed at the end of the block;
    :meth:`clear` drops the stored values. Stored tensors are the model's own, not copies. Reading a tensor
    that was changed in place after it was recorded is an error.

    Args:
        model: The model that runs inside the block.
        sources: The inputs and outputs to record.
        owner: The name of the model in messages, e.g. ``student``.
        convert: Called with a source and its stored calls when the source is first read; the result
            replaces them. Values that are never read are not converted, which saves memory.

    Raises:
        PathError: A module or method does not exist; the message lists similar names.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from mmkd.recorder import Recorder, Source
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> hidden = Source('0')
        >>> recorder = Recorder(model, [hidden])
        >>> with recorder:
        ...     output = model(torch.rand(4, 3))
        >>> recorder[hidden].shape
        torch.Size([4, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        sources: Iterable[Source],
        owner: str = 'model',
        convert: Callable[[Source, Any], Any] | None = None,
    ) -> None:
        self.owner = owner
        self._convert = convert
        self._converted: set[Source] = set()
        self.sources = list(dict.fromkeys(sources))
        self._modules = {source: self._find_modules(model, source) for source in self.sources}
        # By source: for each of its modules, the recorded values of all calls.
        self._calls: dict[Source, list[list[Any]]] = {}
        # By source: the recorded values with their tensor versions, which show changes in place.
        self._versions: dict[Source, list[tuple[Any, Any]]] = {}
        self._handles: list[Any] = []

    def _find_modules(self, model: nn.Module, source: Source) -> list[nn.Module]:
        # Names without wrapper prefixes; a wrapped module comes after its wrapper and replaces it. A module
        # with several names is found by each of them.
        named = model.named_modules(remove_duplicate=False)
        modules = {WRAPPERS.sub('', name): each for name, each in named}
        names = [source.module]
        if '*' in source.module:
            pattern = re.compile(re.escape(source.module).replace(r'\*', r'[^.]+'))
            found = {modules[name]: name for name in reversed(modules) if pattern.fullmatch(name)}
            names = list(reversed(found.values()))  # each module once, by its first name
        if not names or names[0] not in modules:
            hint = did_you_mean(source.module, modules)
            raise PathError(
                f"the {self.owner} ({type(model).__name__}) has no module '{source.module}'{hint}"
            )
        for name in names if source.method is not None else ():
            module, method = modules[name], str(source.method)
            if not callable(getattr(module, method, None)):
                hint = did_you_mean(method, (n for n in dir(module) if not n.startswith('_')))
                raise PathError(
                    f"{self.owner} module '{name}' ({type(module).__name__}) has no method "
                    f"'{source.method}'{hint}"
                )
        return [modules[name] for name in names]

    def __enter__(self) -> Recorder:
        self.clear()
        try:
            for source, modules in self._modules.items():
                for index, module in enumerate(modules) if source.method is None else ():
                    hook = partial(self._on_call, source, index)
                    self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
            for source, modules in self._modules.items():
                for index, module in enumerate(modules) if source.method is not None else ():
                    self._wrap_method(source, index, module)
        except BaseException:
            self._remove_hooks()
            raise
        return self

    def __exit__(self, exc_type: type | None, *_: Any) -> None:
        self._remove_hooks()
        if exc_type is not None:
            self.clear()

    def _remove_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _wrap_method(self, source: Source, index: int, module: nn.Module) -> None:
        method = str(source.method)
        inner = getattr(module, method)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            self._store(source, index, args, kwargs, result)
            return result

        self._handles.append(MethodOverride(module, method, recorded))

    def _on_call(
        self, source: Source, index: int, module: nn.Module, args: tuple, kwargs: dict, output: Any
    ) -> None:
        self._store(source, index, args, kwargs, output)

    def _store(self, source: Source, index: int, args: tuple, kwargs: dict, output: Any) -> None:
        value = output
        if source.capture == 'input':
            value = kwargs if isinstance(source.path[0], str) else args
        for step in source.path:
            try:
                value = value[step]
            except (IndexError, KeyError, TypeError):
                held = sorted(value) if isinstance(value, dict) else type(value).__name__
                size = f' of length {len(value)}' if isinstance(value, (tuple, list)) else ''
                raise PathError(
                    f'{self.owner}: {source} does not exist; the {source.capture} is {held}{size}'
                ) from None
        if source.copy:
            value = map_tensors(Tensor.clone, value)
        calls = self._calls.setdefault(source, [[] for _ in self._modules[source]])
        calls[index].append(value)
        self._versions.setdefault(source, []).append((value, _version(value)))

    def __getitem__(self, source: Source) -> Any:
        calls = self._calls.get(source)
        if not calls:
            raise PathError(
                f'the {self.owner} did not compute {source}: the module exists but was not called in this '
                f'forward pass'
            )
        for value, version in self._versions.get(source, ()):
            if _version(value) != version:
                raise ConfigError(
                    f'the {self.owner} changed {source} in place after computing it, as activations do; '
                    f'record the next layer, or a copy with '
                    f"dict(module='{source.module}', …, copy=True)"
                )
        if self._convert is not None and source not in self._converted:
            self._converted.add(source)
            calls = self._calls[source] = self._convert(source, calls)
            self._versions[source] = [(each, _version(each)) for one in calls for each in one]
        if '*' not in source.module:
            return calls[0][0] if len(calls[0]) == 1 else calls[0]
        times = [len(each) for each in calls]
        if set(times) != {1}:
            raise PathError(
                f'{self.owner}: each of the {len(calls)} modules {source} must be called once per forward '
                f'pass, got {times} calls; name fewer modules'
            )
        return [each[0] for each in calls]

    def __contains__(self, source: Source) -> bool:
        return bool(self._calls.get(source))

    def clear(self) -> None:
        """Drop all recorded values."""
        self._calls.clear()
        self._versions.clear()
        self._converted.clear()


def _version(value: Any) -> Any:
    """The versions of the tensors in a value. They change with every in-place operation."""
    if isinstance(value, Tensor):
        return 0 if value.is_inference() else value._version
    return [_version(each) for each in value] if isinstance(value, (list, tuple)) else None
