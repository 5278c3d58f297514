"""Shard a teacher's weights over the processes of a training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import nn

from ..errors import ConfigError
from .units import sharding_units


class TeacherSharding:
    """Shards a frozen teacher's weights over all processes with torch's ``fully_shard`` (FSDP2).

    Each process stores one shard of the weights of backbone, neck, encoder and decoder. It gathers the
    weights of a unit (:func:`mmkd.sharding.units.sharding_units`) only while the unit runs. Every process
    has all buffers and heads. The teacher's outputs do not change, bit for bit.

    Args:
        name: The config key of the teacher in messages, e.g. ``teacher``.
        shard: Whether to shard the weights.

    Raises:
        ConfigError: torch is too old.
    """

    def __init__(self, name: str, shard: bool = False) -> None:
        if not isinstance(shard, bool):
            raise ConfigError(f'{name}.shard: must be True or False, got {shard!r}')
        self.name = name
        self.shard = shard
        #: Whether the weights still have to be sharded, which happens before the first pass.
        self.is_pending = shard
        if shard:
            find_fully_shard(name)

    def move_to_device(self, detector: nn.Module, device: torch.device) -> None:
        """Move a teacher to its device before a pass, and shard its weights if requested."""
        if self.is_pending and get_world_size() > 1:
            # The units move one after the other, so the device never holds all weights.
            shard_detector(detector, device, find_fully_shard(self.name))
        self.is_pending = False
        if next(detector.parameters()).device != device:
            detector.to(device)


def shard_detector(
    detector: nn.Module, device: torch.device, fully_shard: Callable[..., Any]
) -> None:
    """Shard a detector over all processes.

    Args:
        detector: The frozen detector, with the same weights on all processes.
        device: The device it will run on.
        fully_shard: torch's ``fully_shard``.
    """
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, (get_world_size(),))
    for unit in sharding_units(detector):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    detector.to(device)


def find_fully_shard(name: str) -> Callable[..., Any]:
    """Return torch's ``fully_shard``, which was moved after torch 2.4.

    Raises:
        ConfigError: The installed torch does not have it.
    """
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        try:
            from torch.distributed._composable.fsdp import fully_shard
        except ImportError:
            raise ConfigError(
                f'{name}.shard: needs torch.distributed.fsdp.fully_shard, which torch {torch.__version__} '
                f'does not have; install torch 2.6 or later, or remove shard'
            ) from None
    return fully_shard
