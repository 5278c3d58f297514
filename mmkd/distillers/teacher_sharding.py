"""A teacher whose weights are shared out among the processes of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import nn

from ..errors import ConfigError
from .teacher_speed import TeacherSpeed

# What is shared out: parts that detectors call as modules. Heads are called by their methods, and small.
SHARDED = ('backbone', 'neck', 'encoder', 'decoder')
# Weights that are gathered together; fewer at a time take less memory, more of them fewer messages.
UNIT = 1_000_000
# Modules that read weights of modules inside of them without calling these.
CLOSED = (nn.MultiheadAttention,)


class TeacherSharding:
    """Shares a frozen teacher's weights among all processes, by torch's ``fully_shard`` (FSDP2).

    Each keeps one part of the weights of backbone, neck, encoder and decoder, and gathers those of a
    unit of about :data:`UNIT` just for as long as it runs. Buffers and heads are with every process.
    What the teacher says stays the same, bit for bit.

    All processes must run the same units in the same order, so the pass of such a teacher does not end
    early where only some could.

    Args:
        name: How messages call the teacher's config, e.g. ``teacher``.
        shard: Whether weights are shared out.
        speed: What else its pass is meant to be.

    Raises:
        ConfigError: torch is too old, or the teacher shall be compiled or channels last too.
    """

    def __init__(self, name: str, shard: bool, speed: TeacherSpeed) -> None:
        if not isinstance(shard, bool):
            raise ConfigError(f'{name}.shard={shard!r} is neither True nor False')
        self.name = name
        self.shard = shard
        self._is_done = False
        if not shard:
            return
        fully_shard_of_torch(name)
        for option, value in (
            ('compile', speed.compile_options is not None),
            ('channels_last', speed.channels_last),
        ):
            if value:
                raise ConfigError(
                    f'{name}.{option} lays out or compiles weights that {name}.shard gathers anew each time; '
                    f'leave one of the two out'
                )

    def settle(self, detector: nn.Module, device: torch.device) -> None:
        """Bring a teacher to its device before a pass, its weights shared out if they shall be."""
        if self.shard and not self._is_done and get_world_size() > 1:
            # One unit after the other goes to the device, so that never all weights are there.
            share_out(detector, device, fully_shard_of_torch(self.name))
        self._is_done = True
        if next(detector.parameters()).device != device:
            detector.to(device)


def share_out(detector: nn.Module, device: torch.device, fully_shard: Callable[..., Any]) -> None:
    """Shard :data:`SHARDED` of a detector over all processes.

    Args:
        detector: Frozen, the same on all of them.
        device: Where it will run.
        fully_shard: torch's function.
    """
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (get_world_size(),))
    for name in SHARDED:
        part = getattr(detector, name, None)
        if isinstance(part, nn.Module) and any(True for _ in part.parameters()):
            for unit in (*units(part), part):
                fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    detector.to(device)


def units(part: nn.Module, least: int = UNIT) -> Iterator[nn.Module]:
    """Modules inside of a part of a detector whose weights are gathered together, innermost first.

    Args:
        part: Backbone, neck or the like.
        least: Weights of a unit beside those of units inside of it.
    """

    def walk(module: nn.Module) -> tuple[int, list[nn.Module]]:
        """Weights that no unit inside a module has, and these units."""
        if isinstance(module, CLOSED):
            count, found = sum(weight.numel() for weight in module.parameters()), []
        else:
            inside = [walk(child) for child in module.children()]
            own = sum(weight.numel() for weight in module.parameters(recurse=False))
            count = own + sum(each for each, _ in inside)
            found = [unit for _, each in inside for unit in each]
        # Lists of modules are not called themselves.
        if count < least or module is part or isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            return count, found
        return 0, [*found, module]

    yield from walk(part)[1]


def fully_shard_of_torch(name: str) -> Callable[..., Any]:
    """torch's ``fully_shard``, which has moved since torch 2.4.

    Raises:
        ConfigError: This torch has none.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        try:
            from torch.distributed._composable.fsdp import fully_shard
        except ImportError:
            raise ConfigError(
                f'{name}.shard needs torch.distributed.fsdp.fully_shard, which torch {torch.__version__} '
                f'does not have; install torch 2.6 or later, or leave shard out'
            ) from None
    return fully_shard
