"""What each process of the distributed test runs; importable by name, as spawned processes need."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from mmdet.registry import MODELS
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from tiny_dense import single_stage
from tiny_models import CLASSES, ROI_LOSSES, batch, faster_rcnn, feature_loss
from tiny_transformers import transformer

import mmkd  # noqa: F401  (registers)
from mmkd.alignments import Step
from mmkd.alignments.dense_output import DenseOutput
from mmkd.alignments.prior_selection import PriorSelection

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
    common = dict(student='bbox_head', teacher='bbox_head')
    losses = {
        f'loss_kd_{name.lower()}': dict(
            common, type='KLDivergence', align=dict(type=f'{name}QueryAlignment')
        )
        for name in ('Hungarian', 'Shared')
    }
    _three_steps(rank, world, folder, checkpoint, losses, lambda: transformer('DETR'))


def work_with_a_dense_head(rank: int, world: int, folder: str, checkpoint: str) -> None:
    """One process: three steps of a GFL whose maps cross into the teacher's head, and of its average."""
    layer = 'bbox_head.cls_convs.0.gn'
    objects = dict(module='bbox_head.loss_cls', capture='input', index='avg_factor')
    crossed = dict(type='DenseClassAlignment', crossed=layer, confidence=False, normalizer=objects)
    dense = dict(type='DenseDistributionAlignment', select='labels')
    head = dict(student='bbox_head', teacher='bbox_head')
    losses = dict(
        loss_kd_cls=dict(
            type='SoftLabelBCE',
            student=dict(module=layer, copy=True),
            teacher='bbox_head',
            align=crossed,
        ),
        loss_kd_edges=dict(head, type='KLDivergence', tau=10.0, align=dense),
        loss_kd_average=dict(
            head, type='SoftLabelBCE', align=dict(type='DenseClassAlignment'), teacher_name='own'
        ),
    )
    average = dict(own=dict(ema=dict(type='ExponentialMovingAverage', momentum=0.1)))
    _three_steps(
        rank, world, folder, checkpoint, losses, lambda: single_stage('GFL'), teachers=average
    )


def work_with_a_cache(rank: int, world: int, folder: str, cache: str) -> None:
    """One process: three steps of a Faster R-CNN, whose connector is trained, too, with a cached teacher."""
    losses = dict(copy.deepcopy(ROI_LOSSES), loss_kd_neck=feature_loss(16, 24))
    for entry in losses.values():
        entry['loss_weight'] = 1e-3
    teacher = dict(cache=cache)
    _three_steps(rank, world, folder, '', losses, faster_rcnn, teacher=teacher)


def work_with_measured_weights(rank: int, world: int, folder: str, checkpoint: str) -> None:
    """One process: three steps of a Faster R-CNN whose loss weights are measured in the first two."""
    losses = dict(copy.deepcopy(ROI_LOSSES), loss_kd_neck=feature_loss(16, 24))
    for entry in losses.values():
        entry['loss_weight'] = dict(ratio=0.1, steps=2)
    teacher = dict(config=dict(model=faster_rcnn(channels=24)), checkpoint=checkpoint)
    _three_steps(rank, world, folder, checkpoint, losses, faster_rcnn, teacher=teacher)


def _three_steps(
    rank: int,
    world: int,
    folder: str,
    checkpoint: str,
    losses: dict,
    config: Callable[[], dict],
    teacher: dict | None = None,
    **options: Any,
) -> None:
    """Train with a teacher of the same config or another, and write what each process has then."""
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=world
    )
    init_default_scope('mmdet')
    torch.manual_seed(rank)
    model = MODELS.build(
        dict(
            type='Distiller',
            student=config(),
            teacher=teacher or dict(config=dict(model=config()), checkpoint=checkpoint),
            losses=losses,
            classes=CLASSES,
            **options,
        )
    )
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))
    seen = []
    for now in range(3):
        seen.append(wrapped.train_step(batch(seed=10 * now + rank), optimizer))
        model.teachers.update_averages(model.student)
    averages = {
        f'{name}.{key}': value
        for name, state in model.teachers.average_state().items()
        for key, value in state.items()
        if 'running' not in key
        and 'tracked' not in key  # of BatchNorm, which each rank has its own
    }
    torch.save(
        dict(
            after=dict(model.named_parameters()) | averages,
            losses=[{name: float(one[name].detach()) for name in losses} for one in seen],
            weights=model.weight_state(),
        ),
        f'{folder}/rank{rank}.pth',
    )
    dist.destroy_process_group()


def work_on_a_share(rank: int, world: int, folder: str, checkpoint: str) -> None:
    """One process: steps on its share of a global batch; with ``world=1`` on all of it.

    mmdet divides the losses of a GFL by the mean of ranks' normalisers, so that plain training does not
    depend on how many processes share a batch.
    """
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group(
            'gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=world
        )
    init_default_scope('mmdet')
    torch.manual_seed(0)
    head = dict(student='bbox_head', teacher='bbox_head')
    sure = dict(type='DenseClassAlignment')
    objects = dict(module='bbox_head.loss_cls', capture='input', index='avg_factor')
    losses = dict(
        loss_kd_cls=dict(head, type='SoftLabelBCE', align=sure),
        loss_kd_box=dict(head, type='GIoU', align=dict(type='DenseBoxAlignment', select='labels')),
        loss_kd_sum=dict(head, type='SoftLabelBCE', align=dict(sure, normalizer=objects)),
        loss_kd_neck=feature_loss(32, 32),
    )
    model = MODELS.build(
        dict(
            type='Distiller',
            student=single_stage('GFL'),
            teacher=dict(config=dict(model=single_stage('GFL')), checkpoint=checkpoint),
            losses=losses,
            classes=CLASSES,
        )
    )
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    wrapped.train()  # where mmdet's ResNet freezes its BatchNorm, whose statistics a rank has of its own
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    seen = []
    for now in range(3):
        seen.append(wrapped.train_step(share_of_batch(rank, world, seed=2 * now), optimizer))
    torch.save(
        dict(
            after=model.state_dict() | model.connector_state(),
            losses=[{name: float(one[name].detach()) for name in one} for one in seen],
        ),
        f'{folder}/{world}_rank{rank}.pth',
    )
    if world > 1:
        dist.destroy_process_group()


CACHED = dict(
    rpn=(
        faster_rcnn,
        dict(
            loss_kd_cls=dict(type='KLDivergence', activation='sigmoid', align='RPNClassAlignment'),
            loss_kd_box=dict(type='SmoothL1', align='RPNBoxAlignment'),
            loss_kd_alike=dict(
                type='SmoothL1', align=dict(type='RPNBoxAlignment', confidence=False)
            ),
        ),
    ),
    dense=(
        lambda: single_stage('RetinaNet'),
        dict(
            loss_kd_cls=dict(type='SoftLabelBCE', align='DenseClassAlignment'),
            loss_kd_box=dict(type='GIoU', align='DenseBoxAlignment'),
        ),
    ),
)


def work_on_a_share_with_a_cache(rank: int, world: int, folder: str, kind: str) -> None:
    """One process: distillation losses and gradients of its share of a batch, of a cached teacher.

    Without the student's own losses: mmdet divides those of an RPN by numbers of one process.
    """
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group(
            'gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=world
        )
    init_default_scope('mmdet')
    torch.manual_seed(0)
    student, losses = CACHED[kind]
    model = MODELS.build(
        dict(
            type='Distiller',
            student=student(),
            teacher=dict(cache=f'{folder}/cache'),
            losses=copy.deepcopy(losses),
            classes=CLASSES,
            task_losses=False,
        )
    ).train()
    found = model(**model.data_preprocessor(share_of_views(rank, world), True), mode='loss')
    sum(found.values()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    torch.save(
        dict(losses={n: float(v.detach()) for n, v in found.items()}, gradients=gradients),
        f'{folder}/{world}_rank{rank}.pth',
    )
    if world > 1:
        dist.destroy_process_group()


def cached_images() -> dict:
    """Four images, as a cache is written of them."""
    halves = [batch(seed=half) for half in range(2)]
    for sample in halves[1]['data_samples']:
        sample.set_metainfo(dict(img_id=sample.img_id + 2))
    return {key: [value for half in halves for value in half[key]] for key in halves[0]}


def share_of_views(rank: int, world: int) -> dict:
    """A rank's images of the four; the last two are shifted, so that part of what is stored leaves them."""
    data = cached_images()
    for sample in data['data_samples'][2:]:
        matrix = torch.eye(3, dtype=torch.float64).numpy()
        matrix[0, 2] = 64.0
        sample.set_metainfo(dict(homography_matrix=matrix))
    own = slice(0, 4) if world == 1 else slice(2 * rank, 2 * rank + 2)
    return {key: values[own] for key, values in data.items()}


def share_of_batch(rank: int, world: int, seed: int) -> dict:
    """A rank's images of four, in two halves of which the second shows fewer objects, in the end none."""
    halves = [batch(seed=seed + half) for half in range(2)]
    for sample in halves[1]['data_samples']:
        sample.gt_instances = sample.gt_instances[: 1 if seed < 4 else 0]
    own = halves if world == 1 else [halves[rank]]
    return {key: [value for half in own for value in half[key]] for key in own[0]}


def divisors(rank: int, world: int, folder: str) -> None:
    """One process: the divisor of a dense loss where only the first process recorded the normalizer."""
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=world
    )
    init_default_scope('mmdet')
    source = dict(module='bbox_head.loss_bbox', capture='input', index='avg_factor')
    selection = PriorSelection('all', False, None, source, False)
    head = MODELS.build(single_stage('FCOS')).bbox_head
    maps = [torch.zeros(1, 3, 1, 1) for _ in range(5)]
    output = DenseOutput(maps, 'teacher', head, range(5))
    found = []
    for value in (torch.tensor(5.0), None):
        record = {} if value is None or rank else {selection.normalizer: value}
        step = Step([], None, None, record, {})
        found.append(selection.divisor(output, step))
    torch.save(found, f'{folder}/rank{rank}.pth')
    dist.destroy_process_group()
