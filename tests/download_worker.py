"""What each process of the test of downloads runs; importable by name, as spawned processes need."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from mmkd.checkpoints import read_checkpoint
from mmkd.errors import CheckpointError


def work(rank: int, world: int, folder: str, urls: list[str]) -> None:
    """Read a checkpoint from each URL, all processes on one machine."""
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world))
    torch.hub.set_dir(f'{folder}/hub')
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=world
    )
    found = []
    for url in urls:
        try:
            found.append(read_checkpoint(url, 'teacher.checkpoint')['state_dict'])
        except CheckpointError as error:
            found.append(str(error))
    torch.save(found, f'{folder}/found{rank}.pth')
    dist.destroy_process_group()
