"""Shadow a method of one instance, for a while or for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class MethodOverride:
    """Replaces a method of a module by a function, on this instance only.

    Overrides nest: removing one restores what stood there before, in the reverse order of their creation.
    Use it as a context manager, or keep it and call :meth:`remove`.

    Args:
        module: The module.
        name: Name of the method, e.g. ``forward``.
        function: Called instead of the method, without ``self``. To wrap the method, read it from the
            module first.

    Raises:
        RuntimeError: :meth:`remove` finds the override of somebody else on top.
    """

    def __init__(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        self.module, self.name, self.function = module, name, function
        # Past nn.Module.__setattr__, which would register a module as a submodule.
        self._before: Callable[..., Any] | None = module.__dict__.get(name)
        module.__dict__[name] = function

    def remove(self) -> None:
        """Restore what stood there before."""
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
