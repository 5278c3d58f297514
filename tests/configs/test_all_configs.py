"""Every shipped config builds and runs a training step, on random images and, where needed, a random teacher."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from tiny_caches import write
from tiny_models import batch

CONFIGS = Path(__file__).parents[2] / 'configs'
EVERY = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.parts
)
DISTILLING = [name for name in EVERY if '_to_' in name]
PLAIN = [name for name in EVERY if name not in DISTILLING]


@pytest.fixture(scope='module')
def teachers(tmp_path_factory):
    """Random checkpoints by teacher config, written once each."""
    folder, written = tmp_path_factory.mktemp('teachers'), {}

    def checkpoint(config: str) -> str:
        if config not in written:
            cfg = get_config(config) if '::' in config else Config.fromfile(config)
            torch.manual_seed(0)
            written[config] = str(folder / f'{len(written)}.pth')
            state = initialised(MODELS.build(without_downloads(cfg.model))).state_dict()
            torch.save(dict(state_dict=state), written[config])
        return written[config]

    return checkpoint


@pytest.mark.parametrize('name', EVERY)
def test_builds_and_runs_a_step(name, teachers, tmp_path):
    cfg = Config.fromfile(CONFIGS / name)
    if cfg.model.type == 'Distiller':
        cfg.model.teacher.checkpoint = teachers(cfg.model.teacher.config)
        cfg.model.classes = class_names(cfg)
    data = batch(size=(96, 128))  # deformable convolutions need three places on the coarsest map
    for sample in data['data_samples']:
        sample.gt_instances.labels.clamp_(max=len(class_names(cfg)) - 1)
    if cfg.model.get('teacher', {}).pop('cache', None):
        live = MODELS.build(cfg.model)
        live.prepare()
        cfg.model.teacher.cache = str(write(live, cfg.model.teacher, tmp_path / 'cache', data))
    model = initialised(revert_sync_batchnorm(MODELS.build(cfg.model))).train()
    if model_inherits(cfg):
        for part in model.student.children():
            part.init_cfg = None  # downloads
        model.init_weights()
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    total, log = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    if cfg.model.type == 'Distiller':
        declared = {loss for loss, entry in cfg.model.losses.items() if entry}
        assert declared <= set(log) and (declared or model_inherits(cfg))


def without_scope(config):
    if isinstance(config, dict):
        return {key: without_scope(value) for key, value in config.items() if key != '_scope_'}
    return [without_scope(v) for v in config] if isinstance(config, (list, tuple)) else config


@cache
def plain(name):
    return Config.fromfile(CONFIGS / name)


def student_of(name):
    """The MMDetection config that a recipe inherits."""
    text = (CONFIGS / name).read_text()
    found = re.search(r"_base_ = \[\s*'(mmdet::[^']*)'", text)
    if found:
        return found[1]
    return student_of((Path(name).parent / re.search(r"_base_ = '\./(.*)'", text)[1]).as_posix())


def without_downloads(config):
    """A model config whose parts ask for no weights of other trainings."""
    if isinstance(config, dict):
        config.pop('init_cfg', None)
        for value in config.values():
            without_downloads(value)
    return config


def class_names(cfg):
    """The classes of a config's training data, its own or those of its kind of data set."""
    dataset = cfg.train_dataloader.dataset
    own = (dataset.get('metainfo') or {}).get('classes')
    return list(own or DATASETS.get(dataset.type).METAINFO['classes'])


def model_inherits(cfg):
    return bool((cfg.model.get('init_student') or {}).get('from_teacher'))


def initialised(model):
    """Without downloads: DINO's level embedding alone is any memory until it is initialised."""
    if hasattr(model, 'level_embed'):
        torch.nn.init.normal_(model.level_embed)
    return model


@pytest.mark.parametrize('name', DISTILLING)
def test_a_distillation_differs_from_its_baseline_in_the_model_alone(name):
    """Student against student at the same budget: same data, schedule, optimizer and seed."""
    cfg = Config.fromfile(CONFIGS / name)
    assert cfg.custom_imports.imports == ['mmkd']
    keys = ['val_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler']
    if not name.endswith('_empty-images.py'):  # what it is about
        keys.append('train_dataloader')
    if name.startswith('methods/'):
        base = without_scope(get_config(student_of(name)).to_dict())
        cfg = without_scope(cfg.to_dict())
        if cfg['optim_wrapper'] != base['optim_wrapper']:  # published so, and so it says
            assert 'As published' in (CONFIGS / name).read_text()
            del cfg['optim_wrapper']['clip_grad']
        baselines = [base]
    else:
        baselines = [plain(other) for other in PLAIN]
    baselines = [base for base in baselines if base['model'] == cfg['model']['student']]
    assert baselines, 'its student is not the model of any plain config'
    assert any(all(base.get(key) == cfg.get(key) for key in keys) for base in baselines)


@pytest.mark.parametrize('path', sorted((CONFIGS / 'ablations').glob('*.py')), ids=lambda p: p.stem)
def test_an_ablation_is_short_and_inherits(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 12
    assert text.count('_base_') == 1


def ablations_of(base):
    folder = CONFIGS / 'ablations'
    return {
        path.stem.rpartition('_')[2]: Config.fromfile(path) for path in folder.glob(f'{base}_*.py')
    }


def test_the_ablations_of_faster_rcnn_do_what_their_names_say():
    losses = {
        name: cfg.model
        for name, cfg in ablations_of('faster-rcnn_r50_to_mobilenetv2_voc2012').items()
    }
    assert losses['kl-only'].losses.loss_kd_bbox is None and losses['kl-only'].losses.loss_kd_cls
    assert losses['mse-only'].losses.loss_kd_cls is None and losses['mse-only'].losses.loss_kd_bbox
    assert losses['tau4'].losses.loss_kd_cls.tau == 4.0
    assert losses['teacher-proposals'].teacher.proposals == 'teacher'
    box = losses['giou'].losses.loss_kd_bbox
    assert (box.type, box.align.type, box.align.coordinates) == ('GIoU', 'RoIBoxAlignment', 'box')
    for name in ('rpn', 'fpn'):
        assert len(losses[name].losses) == 3


def test_the_ablations_of_detr_do_what_their_names_say():
    configs = ablations_of('detr_r50_to_r18_coco-person-dog')
    models = {name: cfg.model for name, cfg in configs.items()}
    aligned = {
        name: {entry.align.type for entry in models[name].losses.values() if entry}
        for name in models
    }
    assert models['tau1'].losses.loss_kd_cls.tau == 1.0
    assert {e.align.layers for e in models['last-layer'].losses.values()} == {'last'}
    assert aligned['shared-queries'] == {'SharedQueryAlignment'}
    assert aligned['index'] == {'IndexQueryAlignment'}
    small = models['3enc-3dec'].student
    assert (small.encoder.num_layers, small.decoder.num_layers) == (3, 3)
    assert aligned['memory'] == {'HungarianQueryAlignment', 'EncoderMemoryAlignment'}
    assert 'QueryWeightedFeatureAlignment' in aligned['query-weighted']
    assert models['contrastive'].losses.loss_kd_query.type == 'Contrastive'
    assert models['no-inheritance'].init_student is None
    assert not any(models['inheritance-only'].losses.values())
    assert configs['empty-images'].train_dataloader.dataset.empty_images == 0.1
