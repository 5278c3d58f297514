"""Which modules of a detector processes can share out among them."""

from __future__ import annotations

from torch import nn

# Parts that detectors call as modules. Heads are called by their methods, and small.
SHARDED_PARTS = ('backbone', 'neck', 'encoder', 'decoder')
# Weights that are gathered together; fewer at a time take less memory, more of them fewer messages.
MIN_UNIT_SIZE = 1_000_000
# Modules that read weights of modules inside of them without calling these.
UNSPLIT_MODULES = (nn.MultiheadAttention,)


def sharding_units(detector: nn.Module) -> list[nn.Module]:
    """The modules of a detector whose weights are gathered together, each after those inside of it."""
    named = [getattr(detector, name, None) for name in SHARDED_PARTS]
    parts = [
        part
        for part in named
        if isinstance(part, nn.Module) and any(True for _ in part.parameters())
    ]
    return [unit for part in parts for unit in (*inner_units(part), part)]


def inner_units(part: nn.Module, min_size: int = MIN_UNIT_SIZE) -> list[nn.Module]:
    """Units inside of a part of a detector, innermost first.

    Args:
        part: Backbone, neck or the like.
        min_size: Weights of a unit beside those of units inside of it.
    """

    def walk(module: nn.Module) -> tuple[int, list[nn.Module]]:
        """Weights that no unit inside a module has, and these units."""
        if isinstance(module, UNSPLIT_MODULES):
            count, found = sum(weight.numel() for weight in module.parameters()), []
        else:
            inside = [walk(child) for child in module.children()]
            own = sum(weight.numel() for weight in module.parameters(recurse=False))
            count = own + sum(each for each, _ in inside)
            found = [unit for _, each in inside for unit in each]
        # Lists of modules are not called themselves.
        if count < min_size or module is part or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return count, found
        return 0, [*found, module]

    return walk(part)[1]
