"""What each process of the tests of sharded teachers runs; importable by name, as spawned processes need."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from mmdet.registry import MODELS
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from tiny_models import CLASSES, ROI_LOSSES, batch, faster_rcnn
from tiny_transformers import transformer

import mmkd  # noqa: F401  (registers)

QUERIES = dict(student='bbox_head', teacher='bbox_head', type='KLDivergence')
STAGE = dict(
    type='AttentionTransfer',
    student='backbone.layer2',
    teacher='backbone.layer2',
    align=dict(type='FeatureAlignment', same_channels=False),
)


def wide() -> dict:
    """Wide enough that blocks are units of their own."""
    return faster_rcnn(backbone=dict(base_channels=32), neck=dict(in_channels=[32, 64, 128, 256]))


CASES = {
    'two-stage': (faster_rcnn, wide, dict(ROI_LOSSES, loss_kd_stage=STAGE)),
    'features': (faster_rcnn, wide, dict(loss_kd_stage=STAGE)),
    'transformer': (
        lambda: transformer('DETR'),
        lambda: transformer('DETR'),
        dict(
            loss_kd_cls=dict(QUERIES, align=dict(type='HungarianQueryAlignment')),
            loss_kd_shared=dict(QUERIES, align=dict(type='SharedQueryAlignment')),
        ),
    ),
}


def work(rank: int, world: int, folder: str) -> None:
    """One process: two steps with a whole and with a sharded teacher, on images of its own."""
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=world
    )
    init_default_scope('mmdet')
    report = {name: compare(rank, folder, name) for name in CASES}
    torch.save(report, f'{folder}/rank{rank}.pth')
    dist.destroy_process_group()


def compare(rank: int, folder: str, case: str) -> dict:
    student, teacher, losses = CASES[case]
    seen = []
    for shard in (False, True):
        torch.manual_seed(rank)
        checkpoint = f'{folder}/{case}.pth'
        model = MODELS.build(
            dict(
                type='Distiller',
                student=student(),
                teacher=dict(config=dict(model=teacher()), checkpoint=checkpoint, shard=shard),
                losses=copy.deepcopy(losses),
                classes=CLASSES,
            )
        )
        wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
        wrapped.train()
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
        for now in range(2):
            # The second process sees another size then; alone, the first would end its pass after layer2.
            width = 128 + 32 * (now * rank)
            log = wrapped.train_step(batch((96, width), seed=10 * now + rank), optimizer)
            seen.append({name: float(log[name].detach()) for name in losses})
    detector = model.teacher.detector
    weights = dict(detector.named_parameters())
    local = {
        name: each.to_local() if hasattr(each, 'to_local') else each
        for name, each in weights.items()
    }
    return dict(
        whole=seen[:2],
        sharded=seen[2:],
        names=[name for name, _ in wrapped.named_parameters()],
        units=[
            name
            for name, each in detector.named_modules()
            if type(each).__name__.startswith('FSDP')
        ],
        weights={name: each.numel() for name, each in weights.items()},
        local={name: each.numel() for name, each in local.items()},
        memory={name: each.untyped_storage().nbytes() // 4 for name, each in local.items()},
        gradients=[name for name, each in weights.items() if each.grad is not None],
    )
