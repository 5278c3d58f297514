"""The DETR pair on COCO: its sizes, its classes, and a training on real images where they are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from real_files import real

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
TEACHER = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
STUDENTS = (
    'detr_r18_150e_coco',
    'detr_r18_10e_coco-person-dog',
    'detr_r18_3enc-3dec_10e_coco-person-dog',
)


def test_the_table_of_parameters_is_what_is_counted():
    models = [get_config(TEACHER).model]
    models += [Config.fromfile(CONFIGS / 'students' / f'{name}.py').model for name in STUDENTS]
    counted = {}
    with torch.device('meta'):
        for column, config in enumerate(models):
            model = MODELS.build(config)
            for name, part in [*model.named_children(), ('all', model)]:
                size = sum(parameter.numel() for parameter in part.parameters())
                if size:
                    counted.setdefault(name, {})[column] = f'{size / 1e6:.3f}'
    page = (ROOT / 'docs/recipes/costs.md').read_text()
    table = page.split('## Parameters of the DETR pair')[1].split('\n## ')[0]
    rows = re.findall(r'^\| (\w+) \| (\d.*) \|$', table, re.M)
    written = {name: dict(enumerate(cells.split(' | '))) for name, cells in rows}
    assert written == counted
    assert (
        abs(float(counted['all'][0]) - 41.6) < 0.05 and abs(float(counted['all'][1]) - 28.9) < 0.1
    )


def test_the_student_differs_from_the_teacher_in_the_backbone_alone():
    teacher = get_config(TEACHER).model
    student = Config.fromfile(CONFIGS / 'students/detr_r18_150e_coco.py').model
    for name in ('encoder', 'decoder', 'bbox_head', 'num_queries', 'positional_encoding'):
        assert student[name] == teacher[name]
    own = MODELS.build(student)
    assert own.neck.convs[0].conv.in_channels == 512
    assert own.decoder.layers[0].self_attn.attn.num_heads == 8


def test_two_classes_in_the_order_of_the_annotations():
    cfg = Config.fromfile(CONFIGS / 'detr_r50_to_r18_coco-person-dog.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert tuple(loader.dataset.metainfo.classes) == ('person', 'dog')
    assert cfg.train_cfg.max_epochs == 10
    assert cfg.model.student.bbox_head.num_classes == 2


def test_both_students_are_taught_alike():
    """The two configs stand by themselves; what they say twice must not drift apart."""
    every, two = (
        Config.fromfile(CONFIGS / f'detr_r50_to_r18_coco{name}.py').model
        for name in ('', '-person-dog')
    )
    for key in ('teacher', 'init_student', 'losses'):
        assert every[key] == two[key]


@pytest.fixture
def weights(tmp_path):
    """Random weights in place of the downloads: the teacher's and the backbone's."""
    folder = tmp_path / 'weights'
    folder.mkdir()
    teacher = MODELS.build(get_config(TEACHER).model)
    torch.save(dict(state_dict=teacher.state_dict()), folder / 'detr_r50.pth')
    student = MODELS.build(Config.fromfile(CONFIGS / 'students/detr_r18_150e_coco.py').model)
    torch.save(student.backbone.state_dict(), folder / 'r18.pth')
    return folder


def test_trains_resumes_and_tests_on_real_images(weights, tmp_path):
    """The person-dog config as it is, but for size and length; the checkpoint is the plain student's."""
    data = real('MMKD_COCO')
    small = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True}]
    small += [{'type': 'Resize', 'scale': (160, 160), 'keep_ratio': True}]
    meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pipelines = tmp_path / 'small.py'
    pipelines.write_text(
        f"_base_ = '{CONFIGS / 'detr_r50_to_r18_coco-person-dog.py'}'\n"
        f'train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(indices=4, '
        f'pipeline={[*small, {"type": "PackDetInputs"}]}))\n'
        f'val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(indices=4, '
        f'pipeline={[*small, {"type": "PackDetInputs", "meta_keys": meta}]}))\n'
        'test_dataloader = val_dataloader\n'
    )
    options = [
        '--gpus',
        '0',
        '--work-dir',
        str(tmp_path / 'work'),
        '--cfg-options',
        f'data_root={data}/',
        f'model.teacher.checkpoint={weights / "detr_r50.pth"}',
        f'model.student.backbone.init_cfg.checkpoint={weights / "r18.pth"}',
    ]

    def run(tool, *arguments):
        done = subprocess.run(
            [sys.executable, ROOT / 'tools' / f'{tool}.py', pipelines, *arguments],
            cwd=tmp_path,
            env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    log = run('train', *options, 'train_cfg.max_epochs=1')
    assert re.search(r'init_student: \d+ tensors \(17.*M weights\) copied', log)
    assert 'by loss_kd_cls, loss_kd_bbox, loss_kd_iou' in log
    log = run('train', '--resume', *options, 'train_cfg.max_epochs=2')
    assert 'resumed epoch: 1' in log.lower()
    checkpoint = tmp_path / 'work/epoch_2.pth'
    log = run('test', checkpoint, '--device', 'cpu', *options[2:4], '--cfg-options', options[5])
    assert 'coco/bbox_mAP' in log and 'coco/bbox_F1' in log
    plain = MODELS.build(Config.fromfile(CONFIGS / f'students/{STUDENTS[1]}.py').model)
    plain.load_state_dict(torch.load(checkpoint, weights_only=False)['state_dict'])
