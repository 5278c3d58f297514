"""mmkd/analysis/cache_agreement.py: how well a cache agrees with its teacher."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.datasets import CocoDataset
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from real_files import real
from tiny_caches import distiller, teacher_of
from tiny_dense import single_stage
from tiny_models import ROI_LOSSES, RPN_LOSSES, faster_rcnn, feature_loss
from tiny_transformers import transformer

from mmkd.analysis.cache_agreement import Agreement, compare
from mmkd.cache.files import CacheWriter
from mmkd.cache.pipeline import CHECKED_VIEWS, pipeline_for_view
from mmkd.cache.writing import cache_identity
from mmkd.distillers.teacher_outputs import TeacherOutputs
from mmkd.errors import ConfigError
from mmkd.recorder import Source
from mmkd.teachers import CachedTeacher

OPTIONS = dict(proposals='teacher', num_proposals=64)
HEAD = dict(student='bbox_head', teacher='bbox_head')
DENSE = dict(
    HEAD, type='KLDivergence', activation='sigmoid', align=dict(type='DenseClassAlignment')
)


class Images:
    """Images as a test pipeline and what follows it show them.

    Args:
        images: Pixels, or paths.
        scale: Width and height that they are resized to, keeping their ratio.
        view: Configs of transforms.
    """

    def __init__(self, images: list, scale: tuple[int, int], view: list[dict]) -> None:
        self.images = images
        pipeline = [
            dict(type='Resize', scale=scale, keep_ratio=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_shape', 'ori_shape')),
        ]
        with DefaultScope.overwrite_default_scope('mmdet'):
            load = TRANSFORMS.build(dict(type='LoadImageFromFile'))
            built = [TRANSFORMS.build(each) for each in pipeline_for_view(pipeline, view)]
        self.load, self.pipeline = load, Compose(built)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        random.seed(index)
        np.random.seed(index)
        image = self.images[index]
        if isinstance(image, Path):
            return self.pipeline(self.load(dict(img_id=index, img_path=str(image))))
        size = image.shape[:2]
        return self.pipeline(dict(img_id=index, img=image, img_shape=size, ori_shape=size))


def measure(
    folder: Path, keeper: TeacherOutputs, config: dict, images: list, scale
) -> dict[str, dict]:
    """Agreement by view and kind of content."""
    first, kept = Images(images, scale, []), {}
    for index in range(len(first)):
        sample = first[index]
        kept.update(
            keeper.extract_batch(
                dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
            )
        )
    writer = CacheWriter(folder, cache_identity(keeper, config, list(kept)))
    for name, fields in kept.items():
        writer.add(name, fields)
    writer.finish()
    cached = CachedTeacher(str(folder))
    return {
        name: {row.kind: row for row in compare(keeper, cached, Images(images, scale, view))}
        for name, view in CHECKED_VIEWS.items()
    }


# ------------------------------------------------------------------ real weights, real images


@pytest.fixture(scope='module')
def photographs() -> list[Path]:
    """Eight of Pascal VOC 2012's validation images."""
    root = real('MMKD_VOC') / 'VOC2012'
    names = (root / 'ImageSets/Main/val.txt').read_text().split()
    images = [root / f'JPEGImages/{name}.jpg' for name in names]
    there = [image for image in images if image.is_file()]
    return there[:: len(there) // 8][:8]


def bounds(measured: dict[str, dict], kind: str, found: float, iou: float, apart: float) -> None:
    """What the cache finds in each view of what the teacher finds, at least."""
    for view, rows in measured.items():
        row = rows[kind]
        assert row.detections >= 8, (view, row)
        if view == 'as written':
            assert row.found == 1, row
            assert row.iou > 0.995, row
            assert row.difference < 0.005, row
        else:
            assert row.found >= found, (view, row)
            assert row.iou >= iou, (view, row)
            assert row.difference <= apart, (view, row)


def test_a_trained_two_stage_teacher(photographs, tmp_path):
    checkpoint = real('MMKD_WEIGHTS', 'faster-rcnn_mobilenetv2-fpn128_voc2012-animals.pth')
    path = checkpoint.with_suffix('.py')
    student = Config.fromfile(path).model
    student.backbone.init_cfg = None
    names = ('cat', 'cow', 'dog', 'horse', 'person', 'sheep')
    teacher = dict(config=str(path), checkpoint=str(checkpoint), classes=names, **OPTIONS)
    losses = dict(ROI_LOSSES, **RPN_LOSSES, loss_neck=dict(HEAD, type='MSE'))
    losses['loss_neck'].update(student='neck', teacher='neck')
    keeper = TeacherOutputs(distiller(student, teacher, losses, names), 'teacher')
    measured = measure(tmp_path / 'cache', keeper, teacher, photographs, (320, 320))
    bounds(measured, 'proposals', found=0.7, iou=0.7, apart=0.25)
    bounds(measured, 'rpn', found=0.75, iou=0.6, apart=0.3)
    cosines = {view: rows['maps'].cosine for view, rows in measured.items()}
    assert cosines['as written'] > 0.9999
    assert all(value > 0.7 for value in cosines.values()), cosines


def test_a_trained_dense_teacher(photographs, tmp_path):
    checkpoint = real('MMKD_WEIGHTS', 'yolox_nano_coco_mmdet.pth')
    config = 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py'
    student, names = get_config(config).model, CocoDataset.METAINFO['classes']
    student.data_preprocessor.batch_augments = None
    teacher = dict(config=config, checkpoint=str(checkpoint))
    keeper = TeacherOutputs(distiller(student, teacher, dict(loss_kd=DENSE), names), 'teacher')
    measured = measure(tmp_path / 'cache', keeper, teacher, photographs, (416, 416))
    bounds(measured, 'dense', found=0.7, iou=0.8, apart=0.2)


# ------------------------------------------------------------------ small models


@pytest.fixture(scope='module')
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (96, 128, 3), dtype=np.uint8) for _ in range(2)]


QUERY = dict(HEAD, type='KLDivergence', align=dict(type='HungarianQueryAlignment', layers=[0]))
CASES = {
    'queries': (lambda: transformer('DETR'), dict(loss_kd=QUERY), {}),
    'proposals': (faster_rcnn, ROI_LOSSES, OPTIONS),
    'rpn': (faster_rcnn, RPN_LOSSES, {}),
    'dense': (lambda: single_stage('RetinaNet'), dict(loss_kd=DENSE), {}),
    'maps': (faster_rcnn, dict(loss_kd=feature_loss(16, 16)), {}),
}


@pytest.mark.parametrize('kind', CASES)
def test_each_kind_of_content_is_measured(tmp_path, images, kind):
    """The view that was written agrees; others are measured, whatever random weights say there."""
    model, losses, options = CASES[kind]
    config = model()
    teacher = teacher_of(tmp_path / 'teacher.pth', config, **options)
    keeper = TeacherOutputs(
        distiller(copy.deepcopy(config), teacher, losses), 'teacher', num_priors=10_000
    )
    measured = measure(tmp_path / 'cache', keeper, teacher, images, (128, 96))
    assert set(measured) == set(CHECKED_VIEWS)
    row = measured['as written'][kind]
    if kind == 'maps':
        assert row.cosine > 0.9999
        assert all(-1 <= rows[kind].cosine <= 1 for rows in measured.values())
    elif row.detections:
        assert row.found > 0.98
        assert row.iou > 0.99
        assert row.difference < 0.01
    else:
        assert math.isnan(row.found)
    for rows in measured.values():
        assert isinstance(rows[kind], Agreement)


@pytest.mark.parametrize('name', ['loss_kd_rpn_cls', 'loss_kd_bbox', 'loss_embedding'])
def test_what_has_no_scores_or_no_boxes_is_not_compared(tmp_path, images, name):
    """A loss of an RPN's scores alone; one of an embedding of proposals."""
    embedding = dict(module='roi_head.bbox_head.shared_fcs.0', copy=True)
    every = dict(
        ROI_LOSSES,
        **RPN_LOSSES,
        loss_embedding=dict(type='MSE', student=embedding, teacher=embedding),
    )
    config = faster_rcnn()
    teacher = teacher_of(tmp_path / 'teacher.pth', config, **OPTIONS)
    keeper = TeacherOutputs(distiller(faster_rcnn(), teacher, {name: every[name]}), 'teacher')
    measured = measure(tmp_path / 'cache', keeper, teacher, images, (128, 96))
    for rows in measured.values():
        (row,) = rows.values()
        assert (
            row.detections == 0 or Source('roi_head.bbox_head.fc_cls') in keeper.contents[0].sources
        )
        assert torch.isnan(torch.tensor(row.cosine))


def test_a_cache_of_other_losses_is_refused(tmp_path, images):
    config = faster_rcnn()
    teacher = teacher_of(tmp_path / 'teacher.pth', config, **OPTIONS)
    keeper = TeacherOutputs(distiller(faster_rcnn(), teacher, RPN_LOSSES), 'teacher')
    measure(tmp_path / 'cache', keeper, teacher, images, (128, 96))
    other = TeacherOutputs(distiller(faster_rcnn(), teacher, ROI_LOSSES), 'teacher')
    with pytest.raises(ConfigError, match='does not contain proposals, which the losses read'):
        compare(other, CachedTeacher(str(tmp_path / 'cache')), Images(images, (128, 96), []))
