"""Gradients of several batches added up, and mixed precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner, autocast
from tiny_dense import single_stage
from tiny_models import CLASSES, batch, faster_rcnn, feature_loss, save_teacher
from tiny_training import train, training_config, write_coco
from tiny_transformers import transformer
from torch import nn

HEAD = dict(student='bbox_head', teacher='bbox_head')
OBJECTS = dict(module='bbox_head.loss_cls', capture='input', index='avg_factor')
DENSE = dict(type='DenseClassAlignment', confidence=False)
LOSSES = dict(
    loss_kd_cls=dict(HEAD, type='SoftLabelBCE', align=DENSE),
    loss_kd_sum=dict(
        HEAD, type='SoftLabelBCE', loss_weight=0.1, align=dict(DENSE, normalizer=OBJECTS)
    ),
    loss_kd_neck=dict(feature_loss(32, 32), loss_weight=1e-4),
)


@HOOKS.register_module(force=True)
class Watch(Hook):
    """After each batch: updates of the average, whether the loss acted, and the sum of some weights."""

    priority = 'LOWEST'
    seen: ClassVar[list[tuple[int, bool, float]]] = []

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        weight = runner.model.student.roi_head.bbox_head.fc_cls.weight
        updates = int(runner.model.teacher.average.steps)
        self.seen.append((updates, 'loss_kd_cls' in outputs, float(weight.detach().sum())))


def distiller(model: dict, checkpoint: Path, losses: dict) -> nn.Module:
    torch.manual_seed(0)
    teacher = dict(config=dict(model=model), checkpoint=str(checkpoint))
    config = dict(type='Distiller', student=model, teacher=teacher, losses=losses, classes=CLASSES)
    return MODELS.build(config).train()


def test_two_batches_added_up_are_one_of_twice_the_size(tmp_path: Path):
    """As far as each half divides by as many objects; these show the same."""
    checkpoint = save_teacher(tmp_path / 'teacher.pth', single_stage('FCOS'))
    after = []
    for counts in (1, 2):
        model = distiller(single_stage('FCOS'), checkpoint, LOSSES)
        before = {name: value.clone() for name, value in model.named_parameters()}
        optimizer = OptimWrapper(
            torch.optim.SGD(model.parameters(), lr=0.01), accumulative_counts=counts
        )
        for step in range(2):
            halves = [batch(seed=2 * step + half) for half in range(2)]
            whole = {key: [value for half in halves for value in half[key]] for key in halves[0]}
            for data in [whole] if counts == 1 else halves:
                model.train_step(data, optimizer)
        after.append(dict(model.named_parameters()))
    for name, value in after[0].items():
        torch.testing.assert_close(after[1][name], value, rtol=1e-3, atol=1e-6, msg=name)
    assert any('connectors' in name for name in before)
    assert not any(torch.equal(before[n], after[1][n]) for n in before if 'connectors' in n)


def test_average_moves_with_the_weights_and_schedules_count_batches(tmp_path: Path):
    align = dict(type='RoIClassAlignment')
    fc_cls = dict(student='roi_head.bbox_head.fc_cls', teacher='roi_head.bbox_head.fc_cls')
    loss = dict(fc_cls, type='KLDivergence', align=align, schedule=dict(end=3, unit='iter'))
    model = dict(
        type='Distiller',
        student=faster_rcnn(),
        teacher=dict(ema=dict(type='ExponentialMovingAverage', momentum=0.5)),
        losses=dict(loss_kd_cls=loss),
    )
    cfg = training_config(model, write_coco(tmp_path / 'data'), tmp_path / 'run', iters=4)
    cfg.optim_wrapper.accumulative_counts = 2
    cfg.custom_hooks = [dict(type='Watch')]
    Watch.seen.clear()
    train(cfg)
    updates, acted, weights = zip(*Watch.seen, strict=True)
    assert updates == (0, 1, 1, 2)
    assert acted == (True, True, True, False)
    assert weights[0] != weights[1] == weights[2] != weights[3]


class HalfPrecision(OptimWrapper):
    """mmengine's AmpOptimWrapper, which wants a GPU, without its scaling of losses."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), autocast(device_type='cpu', dtype=torch.bfloat16):
            yield


CASES = {
    'FCOS': (lambda: single_stage('FCOS'), LOSSES),
    'DETR': (
        lambda: transformer('DETR'),
        dict(
            loss_kd_cls=dict(HEAD, type='KLDivergence', align=dict(type='HungarianQueryAlignment')),
            loss_kd_shared=dict(HEAD, type='KLDivergence', align=dict(type='SharedQueryAlignment')),
        ),
    ),
}


@pytest.mark.parametrize(('model', 'losses'), CASES.values(), ids=CASES)
def test_distils_in_half_precision(tmp_path: Path, model, losses):
    checkpoint = save_teacher(tmp_path / 'teacher.pth', model())
    logs = []
    for wrapper in (OptimWrapper, HalfPrecision):
        student = distiller(model(), checkpoint, losses)
        optimizer = wrapper(torch.optim.AdamW(student.parameters(), lr=1e-3))
        kinds = []
        student.neck.register_forward_hook(lambda _, __, out: kinds.append(out[0].dtype))  # noqa: B023
        torch.manual_seed(1)
        log = [student.train_step(batch(), optimizer) for _ in range(4)]
        logs.append([{name: float(each[name].detach()) for name in each} for each in log])
        assert set(kinds) == {torch.float32 if wrapper is OptimWrapper else torch.bfloat16}
        assert all(weight.dtype == torch.float32 for weight in student.parameters())
    assert logs[1][-1]['loss'] < logs[1][0]['loss']
    for name in losses:
        assert logs[1][0][name] == pytest.approx(logs[0][0][name], rel=0.1), name
