"""What each process of the distributed test runs; importable by name, as spawned processes need."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from mmdet.registry import MODELS
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from tiny_models import CLASSES, ROI_LOSSES, batch, faster_rcnn, feature_loss
from tiny_transformers import transformer

import mmkd  # noqa: F401  (registers)

STEPS = 4


def work(rank: int, world: int, folder: str, checkpoint: str) -> None:
    """One process: a few steps on data of its own, the connector's loss off in the last two."""
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=world
    )
    init_default_scope('mmdet')
    losses = copy.deepcopy(ROI_LOSSES)
    losses['loss_kd_neck'] = dict(feature_loss(16, 24), schedule=dict(end=2, unit='iter'))
    for entry in losses.values():
        entry['loss_weight'] = 1e-3
    torch.manual_seed(rank)  # the ranks start apart; DDP must bring them together
    model = MODELS.build(
        dict(
            type='Distiller',
            student=faster_rcnn(),
            teacher=dict(config=dict(model=faster_rcnn(channels=24)), checkpoint=checkpoint),
            losses=losses,
            classes=CLASSES,
        )
    )
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    model.prepare()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    hub = MessageHub.get_instance('training')
    losses_seen = []
    for now in range(STEPS):
        hub.update_info('iter', now)
        losses_seen.append(wrapped.train_step(batch(seed=10 * now + rank), optimizer))
    torch.save(
        dict(
            before=before,
            after=dict(model.named_parameters()),
            names=[name for name, _ in wrapped.named_parameters()],
            loss=[float(seen['loss'].detach()) for seen in losses_seen],
            neck=[float(seen['loss_kd_neck'].detach()) for seen in losses_seen],
        ),
        f'{folder}/rank{rank}.pth',
    )
    dist.destroy_process_group()


def work_with_queries(rank: int, world: int, folder: str, checkpoint: str) -> None:
    """One process: three steps of a DETR that answers its own queries and the teacher's."""
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=world
    )
    init_default_scope('mmdet')
    common = dict(student='bbox_head', teacher='bbox_head')
    losses = {
        f'loss_kd_{name.lower()}': dict(
            common, type='KLDivergence', align=dict(type=f'{name}QueryAlignment')
        )
        for name in ('Hungarian', 'Shared')
    }
    torch.manual_seed(rank)
    model = MODELS.build(
        dict(
            type='Distiller',
            student=transformer('DETR'),
            teacher=dict(config=dict(model=transformer('DETR')), checkpoint=checkpoint),
            losses=losses,
            classes=CLASSES,
        )
    )
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))
    seen = [wrapped.train_step(batch(seed=10 * now + rank), optimizer) for now in range(3)]
    torch.save(
        dict(
            after=dict(model.named_parameters()),
            losses=[{name: float(one[name].detach()) for name in losses} for one in seen],
        ),
        f'{folder}/rank{rank}.pth',
    )
    dist.destroy_process_group()
