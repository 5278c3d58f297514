"""A teacher whose weights are shared out among the processes of a training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import nn

from ..errors import ConfigError
from .units import sharding_units


class TeacherSharding:
    """Shares a frozen teacher's weights among all processes, by torch's ``fully_shard`` (FSDP2).

    Each keeps one part of the weights of backbone, neck, encoder and decoder, and gathers those of a
    unit (:func:`mmkd.sharding.units.sharding_units`) just for as long as it runs. Buffers and heads are
    with every process. The teacher's outputs stay the same, bit for bit.

    Args:
        name: How messages call the teacher's config, e.g. ``teacher``.
        shard: Whether weights are shared out.

    Raises:
        ConfigError: torch is too old.
    """

    def __init__(self, name: str, shard: bool = False) -> None:
        if not isinstance(shard, bool):
            raise ConfigError(f'{name}.shard={shard!r} is neither True nor False')
        self.name = name
        self.shard = shard
        #: Whether weights are still to be shared out, once there are several processes.
        self.is_pending = shard
        if shard:
            find_fully_shard(name)

    def move_to_device(self, detector: nn.Module, device: torch.device) -> None:
        """Move a teacher to its device before a pass, its weights shared out if they shall be."""
        if self.is_pending and get_world_size() > 1:
            # One unit after the other goes to the device, so that never all weights are there.
            shard_detector(detector, device, find_fully_shard(self.name))
        self.is_pending = False
        if next(detector.parameters()).device != device:
            detector.to(device)


def shard_detector(
    detector: nn.Module, device: torch.device, fully_shard: Callable[..., Any]
) -> None:
    """Shard a detector over all processes.

    Args:
        detector: Frozen, the same on all of them.
        device: Where it will run.
        fully_shard: torch's function.
    """
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (get_world_size(),))
    for unit in sharding_units(detector):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    detector.to(device)


def find_fully_shard(name: str) -> Callable[..., Any]:
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
