"""Replace a method of one instance, temporarily or permanently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class MethodOverride:
    """Replaces a method of a module by a function, on this instance only.

    Overrides can be nested and must be removed in reverse order; removing one restores the previous
    method. Use it as a context manager, or call :meth:`remove`.

    Args:
        module: The module.
        name: Name of the method, e.g. ``forward``.
        function: The replacement, called without ``self``. To wrap the method, read it from the module
            first.

    Raises:
        RuntimeError: A later override is still in place when :meth:`remove` is called.
    """

    def __init__(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        self.module, self.name, self.function = module, name, function
        # Bypass nn.Module.__setattr__, which would register a module as a submodule.
        self._before: Callable[..., Any] | None = module.__dict__.get(name)
        module.__dict__[name] = function

    def remove(self) -> None:
        """Restore the previous method."""
        present = self.module.__dict__
        if present.get(self.name) is not self.function:
            raise RuntimeError(
                f'{type(self.module).__name__}.{self.name}: overrides must be removed in reverse order'
            )
        if self._before is None:
            del present[self.name]
        else:
            present[self.name] = self._before

    def __enter__(self) -> MethodOverride:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()
