"""Select the modules of a detector that are sharded as units."""

from __future__ import annotations

from torch import nn

# Only modules that are called directly can be sharded. Heads are called by their methods, and are small.
SHARDED_PARTS = ('backbone', 'neck', 'encoder', 'decoder')
# Smallest number of weights in a unit. Smaller units need less memory, larger ones fewer messages.
MIN_UNIT_SIZE = 1_000_000
# Modules that read the weights of their submodules without calling them.
UNSPLIT_MODULES = (nn.MultiheadAttention,)


def sharding_units(detector: nn.Module) -> list[nn.Module]:
    """Return the modules of a detector that are sharded as units, each after the units inside it."""
    named = [getattr(detector, name, None) for name in SHARDED_PARTS]
    parts = [
        part
        for part in named
        if isinstance(part, nn.Module) and any(True for _ in part.parameters())
    ]
    return [unit for part in parts for unit in (*inner_units(part), part)]


def inner_units(part: nn.Module, min_size: int = MIN_UNIT_SIZE) -> list[nn.Module]:
    """Return the units inside a part of a detector, innermost first.

    Args:
        part: The backbone, neck, encoder or decoder.
        min_size: Smallest number of weights in a unit, without the units inside it.
    """

    def walk(module: nn.Module) -> tuple[int, list[nn.Module]]:
        """Return the number of weights in no unit inside the module, and the units inside the module."""
        if isinstance(module, UNSPLIT_MODULES):
            count, found = sum(weight.numel() for weight in module.parameters()), []
        else:
            inside = [walk(child) for child in module.children()]
            own = sum(weight.numel() for weight in module.parameters(recurse=False))
            count = own + sum(each for each, _ in inside)
            found = [unit for _, each in inside for unit in each]
        # Lists and dicts of modules are not called themselves, so they cannot be units.
        if count < min_size or module is part or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return count, found
        return 0, [*found, module]

    return walk(part)[1]
