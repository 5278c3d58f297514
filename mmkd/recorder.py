"""Capture what chosen modules of a model compute, only while asked to."""

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
# What FSDP and activation checkpointing put into the names of modules, after a dot or before one.
WRAPPERS = re.compile(r'\.?_(fsdp|checkpoint)_wrapped_module\b')


@dataclass(frozen=True)
class Source:
    """One thing to capture in a model.

    Args:
        module: Dotted path as in ``model.named_modules()``, e.g. ``roi_head.bbox_head.fc_cls``; the
            empty path is the model itself. A ``*`` stands for any one name between dots:
            ``neck.fpn_convs.*.conv`` is the list of what each of these modules gives.
        capture: ``output`` or ``input`` of the module's call.
        method: Name of a method of the module; its result (or arguments, with ``capture='input'``)
            is captured in place of the module's call.
        index: Position in a captured tuple or list; for inputs, the position of the positional
            argument, or the name of a keyword argument. A list of them goes deeper: ``[0, 2]`` is
            the third level of a head's first output. ``None`` keeps the whole output.
        copy: Keep a copy of the tensor, because the layer after the module changes it in index, as most
            activations do.
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
            raise ConfigError(f"capture='{self.capture}' of '{self.module}' is none of {CAPTURES}")
        if self.capture == 'input' and self.index is None:
            raise ConfigError(
                f"an input of '{self.module}' needs index=: the position or name of the argument"
            )

    @classmethod
    def parse(cls, source: Any) -> Source:
        """A source from its config form: a module path, or a dict of the arguments above."""
        if isinstance(source, cls):
            return source
        if isinstance(source, str):
            return cls(source)
        try:
            return cls(**dict(source))
        except TypeError as error:
            raise ConfigError(f'{dict(source)} does not describe what to record: {error}') from None

    @property
    def path(self) -> tuple[int | str, ...]:
        """The positions to go down, outermost first."""
        if self.index is None:
            return ()
        return self.index if isinstance(self.index, tuple) else (self.index,)

    def __str__(self) -> str:
        name = '.'.join(filter(None, (self.module, self.method and f'{self.method}()')))
        name += ''.join(f'[{step}]' for step in self.path)
        return name if self.capture == 'output' else f'input of {name}'


class Recorder:
    """Forward hooks that live as long as a ``with`` block.

    Inside the block, every call of a recorded module is kept; ``recorder[source]`` gives the value
    of a single call, or the list of values when the module was called more than once (a head shared by
    feature levels) or its path stands for several modules. Leaving the block removes all hooks;
    :meth:`clear` drops what was captured. Captured tensors are the model's own, not copies; one that an
    in-place operation has changed since is an error.

    Args:
        model: The model that runs inside the block.
        sources: What to capture.
        owner: How messages call the model, e.g. ``student``.
        convert: Called with a source and what was captured of it when it is first read; what it returns is
            kept instead, so that copies of what nobody reads take no memory.

    Raises:
        PathError: A module or method does not exist; near names are listed.
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
        # Of each source what each of its modules gave, call by call.
        self._calls: dict[Source, list[list[Any]]] = {}
        # The same with a number that shows whether it was changed since.
        self._versions: dict[Source, list[tuple[Any, Any]]] = {}
        self._handles: list[Any] = []

    def _find_modules(self, model: nn.Module, source: Source) -> list[nn.Module]:
        # By the names they have where nothing wraps them; what is wrapped comes after its wrapper.
        # A module that has several names is found by each.
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
                    f'{self.owner}: {source} is not there; the {source.capture} is {held}{size}'
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
                f'the {self.owner} was not seen to compute {source}: the module exists but was not '
                f'called in this pass'
            )
        for value, version in self._versions.get(source, ()):
            if _version(value) != version:
                raise ConfigError(
                    f'the {self.owner} changed {source} in place after computing it, as an activation does; '
                    f'record what follows it, or what it was with '
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
                f'{self.owner}: of the {len(calls)} modules {source}, each must be called once in a '
                f'pass, but they were called {times} times; name fewer of them'
            )
        return [each[0] for each in calls]

    def __contains__(self, source: Source) -> bool:
        return bool(self._calls.get(source))

    def clear(self) -> None:
        """Drop everything captured."""
        self._calls.clear()
        self._versions.clear()
        self._converted.clear()


def _version(value: Any) -> Any:
    """Changes whenever an in-place operation changes a tensor."""
    if isinstance(value, Tensor):
        return 0 if value.is_inference() else value._version
    return [_version(each) for each in value] if isinstance(value, (list, tuple)) else None
