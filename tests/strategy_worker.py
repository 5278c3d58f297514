"""What each process of the tests of mmengine's strategies runs; importable by name, as spawned ones need."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.registry import init_default_scope
from mmengine.runner import FlexibleRunner
from tiny_models import ROI_LOSSES, faster_rcnn, feature_loss
from tiny_training import training_config
from tiny_transformers import transformer

import mmkd  # noqa: F401  (registers)
from mmkd.checkpoints import allow_training_checkpoints

TOOLS = Path(__file__).parents[1] / 'tools'
STAGE = dict(
    type='AttentionTransfer',
    student='backbone.layer2',
    teacher='backbone.layer2',
    align=dict(type='FeatureAlignment', same_channels=False),
)
QUERIES = dict(student='bbox_head', teacher='bbox_head', type='KLDivergence', activation='sigmoid')
CASES = {
    # A connector, and what lies inside of a module that FSDP wraps.
    'two-stage': (
        faster_rcnn,
        dict(ROI_LOSSES, loss_kd_neck=feature_loss(16, 16), loss_kd_stage=STAGE),
    ),
    # Weights of its own, level_embed, and wrapped encoder and decoder.
    'transformer': (
        lambda: transformer('DeformableDETR'),
        dict(loss_kd_cls=dict(QUERIES, align=dict(type='HungarianQueryAlignment'))),
    ),
}
ARGUMENTS = (
    *('model', 'work_dir', 'experiment_name', 'train_dataloader', 'optim_wrapper', 'train_cfg'),
    *(
        'strategy',
        'default_hooks',
        'resume',
        'launcher',
        'visualizer',
        'default_scope',
        'randomness',
    ),
    *('env_cfg', 'log_level'),
)
ITERS = {'two-stage': (2, 3), 'transformer': (2,)}


def config(case: str, folder: str, name: str, iters: int):
    """A training of a case by FlexibleRunner."""
    model, losses = CASES[case][0], copy.deepcopy(CASES[case][1])
    for loss in losses.values():
        loss['loss_weight'] = 1e-2
    cfg = training_config(
        dict(
            type='Distiller',
            student=model(),
            teacher=dict(config=dict(model=model()), checkpoint=f'{folder}/{case}.pth'),
            losses=losses,
        ),
        Path(folder) / 'data',
        Path(folder) / name / case,
        iters=iters,
    )
    cfg.runner_type, cfg.launcher = 'FlexibleRunner', 'pytorch'
    cfg.experiment_name = cfg.visualizer.name = f'{name}{case}{iters}'
    cfg.train_dataloader.batch_size = 1
    cfg.env_cfg = dict(dist_cfg=dict(backend='gloo'))
    cfg.optim_wrapper.clip_grad = dict(max_norm=0.5)
    return cfg


def work(rank: int, world: int, folder: str) -> None:
    """One process: each case trained with DDP and with FSDP, the first resumed."""
    torch.set_num_threads(1)
    os.environ['LOCAL_RANK'] = str(rank)
    sys.path.insert(0, str(TOOLS))
    from _cli import fit_to_cpu

    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=world
    )
    init_default_scope('mmdet')
    allow_training_checkpoints()
    report = {}
    for case in CASES:
        for name, kind in (('ddp', 'DDPStrategy'), ('fsdp', 'StudentFSDPStrategy')):
            for iters in ITERS[case]:
                cfg = config(case, folder, name, iters)
                cfg.strategy, cfg.resume = dict(type=kind), iters == 3
                fit_to_cpu(cfg)
                # Without its argument cfg, which mmengine would format again and again.
                runner = FlexibleRunner(**{key: cfg.get(key) for key in ARGUMENTS})
                runner.train()
            model = runner.model
            report[f'{name} {case}'] = dict(
                names=[each for each, _ in model.named_parameters()],
                local=sum(each.numel() for each in model.parameters()),
                teacher=sum(each.numel() for each in model.module.teacher.detector.parameters()),
            )
    torch.save(report, f'{folder}/rank{rank}.pth')
    dist.destroy_process_group()
