"""A data set and a training small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from tiny_models import CLASSES


def write_coco(folder: Path, images: int = 8, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write ``annotations.json`` and ``images/``: one textured rectangle of each class an image."""
    random = np.random.default_rng(0)
    (folder / 'images').mkdir(parents=True)
    content = dict(
        images=[],
        annotations=[],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(classes)],
    )
    for index in range(images):
        pixels = random.integers(90, 150, (96, 128, 3), dtype=np.uint8)
        for category in range(len(classes)):
            x, y = random.integers(0, 70), random.integers(0, 50)
            width, height = random.integers(20, 50), random.integers(20, 44)
            pixels[y : y + height, x : x + width, category % 3] = 240
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=index,
                    category_id=category + 1,
                    bbox=[int(v) for v in (x, y, width, height)],
                    area=int(width * height),
                    iscrowd=0,
                )
            )
        Image.fromarray(pixels).save(folder / 'images' / f'{index}.png')
        content['images'].append(dict(id=index, file_name=f'{index}.png', height=96, width=128))
    (folder / 'annotations.json').write_text(json.dumps(content))
    return folder


def training_config(model: dict, data: Path, work_dir: Path, iters: int = 4, **changes) -> Config:
    """The config of a training of ``iters`` iterations of two images, a checkpoint at the end."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        dataset=dict(
            type='CocoDataset',
            data_root=str(data),
            ann_file='annotations.json',
            data_prefix=dict(img='images/'),
            metainfo=dict(classes=CLASSES),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='Resize', scale=(128, 96), keep_ratio=True),
                dict(type='RandomFlip', prob=0.5),
                dict(type='PackDetInputs'),
            ],
        ),
    )
    evaluator = dict(type='CocoMetric', ann_file=str(data / 'annotations.json'), metric='bbox')
    config = Config(
        dict(
            model=model,
            default_scope='mmdet',
            work_dir=str(work_dir),
            train_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=True)),
            val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            test_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            val_evaluator=evaluator,
            test_evaluator=evaluator,
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=1000),
            val_cfg=dict(type='ValLoop'),
            test_cfg=dict(type='TestLoop'),
            optim_wrapper=dict(
                type='OptimWrapper',
                optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
                clip_grad=dict(max_norm=10),
            ),
            default_hooks=dict(
                distillation=dict(type='DistillationHook'),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=iters),
            ),
            randomness=dict(seed=7),
            log_level='WARNING',
            visualizer=dict(
                type='Visualizer', vis_backends=[dict(type='LocalVisBackend')], name=str(work_dir)
            ),
            experiment_name=str(work_dir),
        )
    )
    config.merge_from_dict(changes)
    return config


def train(config: Config) -> Runner:
    """Run a training; returns its finished runner."""
    runner = Runner.from_cfg(config)
    runner.train()
    return runner
