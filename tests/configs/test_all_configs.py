"""Every shipped config builds and runs a training step, on random images and, where needed, a random teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from tiny_models import batch

CONFIGS = Path(__file__).parents[2] / 'configs'
EVERY = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.parts
)
DISTILLING = [name for name in EVERY if '_to_' in name]


@pytest.fixture(scope='module')
def teachers(tmp_path_factory):
    """Random checkpoints by teacher config, written once each."""
    folder, written = tmp_path_factory.mktemp('teachers'), {}

    def checkpoint(config: str) -> str:
        if config not in written:
            cfg = Config.fromfile(config)
            torch.manual_seed(0)
            written[config] = str(folder / f'{len(written)}.pth')
            torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), written[config])
        return written[config]

    return checkpoint


@pytest.mark.parametrize('name', EVERY)
def test_builds_and_runs_a_step(name, teachers):
    cfg = Config.fromfile(CONFIGS / name)
    if cfg.model.type == 'Distiller':
        cfg.model.teacher.checkpoint = teachers(cfg.model.teacher.config)
        cfg.model.classes = [
            str(i) for i in range(cfg.model.student.roi_head.bbox_head.num_classes)
        ]
        cfg.model.teacher.classes = cfg.model.classes
    model = MODELS.build(cfg.model).train()
    losses = model(**model.data_preprocessor(batch(size=(64, 96)), True), mode='loss')
    total, log = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    if cfg.model.type == 'Distiller':
        declared = {loss for loss, entry in cfg.model.losses.items() if entry}
        assert declared and declared <= set(log)


@pytest.mark.parametrize('name', DISTILLING)
def test_a_distillation_differs_from_its_baseline_in_the_model_alone(name):
    """Student against student at the same budget: same data, schedule, optimizer and seed."""
    cfg = Config.fromfile(CONFIGS / name)
    assert cfg.custom_imports.imports == ['mmkd'] and 'distillation' in cfg.default_hooks
    same = [
        Config.fromfile(CONFIGS / other)
        for other in EVERY
        if other not in DISTILLING and 'r50' not in other and 'r18' not in other
    ]
    keys = ('train_dataloader', 'val_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')
    baselines = [base for base in same if base.model == cfg.model.student]
    assert baselines, 'its student is not the model of any plain config'
    assert any(all(base.get(key) == cfg.get(key) for key in keys) for base in baselines)


@pytest.mark.parametrize('path', sorted((CONFIGS / 'ablations').glob('*.py')), ids=lambda p: p.stem)
def test_an_ablation_is_short_and_inherits(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 12
    assert text.count('_base_') == 1


def test_the_ablations_do_what_their_names_say():
    losses = {
        path.stem.rpartition('_')[2]: Config.fromfile(path).model
        for path in (CONFIGS / 'ablations').glob('*.py')
    }
    assert losses['kl-only'].losses.loss_kd_bbox is None and losses['kl-only'].losses.loss_kd_cls
    assert losses['mse-only'].losses.loss_kd_cls is None and losses['mse-only'].losses.loss_kd_bbox
    assert losses['tau4'].losses.loss_kd_cls.tau == 4.0
    assert losses['teacher-proposals'].teacher.proposals == 'teacher'
    box = losses['giou'].losses.loss_kd_bbox
    assert (box.type, box.align.type, box.align.coordinates) == ('GIoU', 'RoIBoxAlignment', 'box')
    for name in ('rpn', 'fpn'):
        assert len(losses[name].losses) == 3
