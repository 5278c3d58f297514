"""mmkd/preflight/: each fault is one line before anything is written."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import fault_page
import mmdet
import pytest
import torch
from fault_table import (
    FAULTS,
    NORMALIZE,
    Case,
    Fault,
    identifiers,
    sound_case,
    voc_object,
    with_masks,
    xml,
)
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config

from mmkd.preflight import PlannedRun, examine
from mmkd.preflight.table import Check

MASKS_ALONE = f'{mmdet.__path__[0]}/.mim/configs/mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
MASKS_FROM_BOXES = f'{mmdet.__path__[0]}/.mim/configs/boxinst/boxinst_r50_fpn_ms-90k_coco.py'


@pytest.fixture(params=FAULTS, ids=list(identifiers()))
def faulty(request, tmp_path) -> tuple[Fault, Case]:
    fault: Fault = request.param
    case = sound_case(tmp_path / 'run', fault.form)
    fault.apply(case)
    return fault, case


def test_one_line_before_anything_is_written(faulty, tool, capsys, tmp_path):
    fault, case = faulty
    path = case.write()
    there = sorted(tmp_path.rglob('*'))
    if fault.advice:
        return
    arguments = ('--device', 'cpu') if not fault.check_only else ('--sample', '--device', 'cpu')
    assert tool('check' if fault.check_only else 'train', path, *arguments) == 2
    printed = capsys.readouterr()
    if fault.check_only:
        lines = [line for line in printed.out.splitlines() if 'error    ' in line]
    else:
        lines = printed.err.strip().splitlines()
        lines = [line for line in lines if not line.startswith('mmkd: warning: ')]
        assert all(line.startswith('mmkd: error: ') for line in lines)
    assert len(lines) == 1, lines
    for part in fault.expected:
        assert part in lines[0]
    assert sorted(tmp_path.rglob('*')) == there


def test_check_names_it_and_nothing_else(faulty):
    fault, case = faulty
    verdicts = list(examine(PlannedRun(case.config, ('train', 'val', 'test'), whole=True)))
    found = [str(each) for it in verdicts for each in (it.advice if fault.advice else it.errors)]
    assert found
    assert any(all(part in each for part in fault.expected) for each in found), found
    if fault.advice:
        assert not [error for it in verdicts for error in it.errors]


@pytest.mark.parametrize('form', ['coco', 'voc'])
def test_a_sound_run_passes(tmp_path: Path, form: str):
    case = sound_case(tmp_path / 'run', form)
    verdicts = list(examine(PlannedRun(case.config, ('train', 'val', 'test'), whole=True)))
    assert [it.status for it in verdicts] == ['passed'] * len(verdicts)


def negatives_beside_others(case: Case) -> None:
    """A second data set of images without objects."""
    case.edit(lambda it: dict(it, annotations=[]), 'annotations.json')
    empty = case.folder / 'data/annotations.json'
    empty.rename(case.folder / 'data/empty.json')
    sound_case(case.folder / 'again', 'coco')
    (case.folder / 'again/data/annotations.json').rename(empty)
    one = dict(case.train)
    case.config.train_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[one, dict(one, ann_file='empty.json')]
    )


def unlabelled(case: Case) -> None:
    """Images without labels, as semi-supervised training reads them."""
    case.edit(lambda it: it.update(annotations=[]))
    case.train.pipeline[1] = dict(type='LoadEmptyAnnotations')


def head_for(count: int, **metainfo):
    def change(case: Case) -> None:
        case.config.model.roi_head.bbox_head.num_classes = count
        for mode in ('train', 'val', 'test'):
            case.config[f'{mode}_dataloader'].dataset.metainfo.update(metainfo)

    return change


def without_class(case: Case) -> None:
    """The last class is in no file, and labels of the others mean what they say."""

    def drop(content: dict) -> None:
        content['categories'] = content['categories'][:2]
        content['annotations'] = [it for it in content['annotations'] if it['category_id'] < 3]

    case.edit(drop)


def ignored_without_box(case: Case) -> None:
    more = dict(id=99, image_id=0, category_id=1, ignore=1, iscrowd=0)
    case.edit(lambda it: it['annotations'].append(more))


def text_prompts(case: Case) -> None:
    case.for_all(return_classes=True)
    case.config.model.roi_head.bbox_head.num_classes = 256


def pretrained_with_prefix(case: Case) -> None:
    """A backbone's weights as mmpretrain's checkpoints have them, beside a classifier's."""
    state = MODELS.build(case.config.model).backbone.state_dict()
    found = {f'backbone.{key}': value for key, value in state.items()}
    path = case.folder / 'backbone.pth'
    torch.save(dict(state_dict=found | {'head.fc.weight': torch.zeros(2)}), path)
    case.config.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(path), prefix='backbone.'
    )


def proposals_alone(case: Case) -> None:
    """A detector that finds objects of any class."""
    model = case.config.model
    model.type = 'RPN'
    model.train_cfg = dict(rpn=model.train_cfg.rpn)
    del model['roi_head']
    case.config.val_evaluator.metric = 'proposal_fast'


def mosaic(case: Case) -> None:
    """Several wrappers, one with a pipeline of its own."""
    inner = dict(case.train)
    steps, inner['pipeline'] = inner['pipeline'], inner['pipeline'][:2]
    several = dict(type='ConcatDataset', datasets=[inner, dict(inner)])
    case.config.train_dataloader.dataset = dict(
        type='MultiImageMixDataset',
        dataset=dict(type='RepeatDataset', times=2, dataset=several),
        pipeline=[dict(type='Mosaic', img_scale=(128, 96)), *steps[3:]],
    )


def outlines_of_none(case: Case) -> None:
    """A detector of masks that learns them from boxes loads no masks."""
    with_masks(case)
    case.edit(lambda it: [each.pop('segmentation') for each in it['annotations']] and None)
    for mode in ('train', 'val', 'test'):
        case.config[f'{mode}_dataloader'].dataset.pipeline[1].pop('with_mask')
    case.config.model = Config.fromfile(MASKS_FROM_BOXES).model
    case.config.model.bbox_head.num_classes = 3
    case.config.model.backbone.init_cfg = None


def epochs(case: Case) -> None:
    """Schedules in epochs that are stepped by iterations, and weights with options of their own."""
    cfg = case.config
    cfg.train_cfg = dict(by_epoch=True, max_epochs=3)
    cfg.param_scheduler = [
        dict(type='mmdet.QuadraticWarmupLR', begin=0, end=1, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', begin=1, T_max=1, end=2, convert_to_iter_based=True),
        dict(type='ConstantLR', factor=1, begin=2, end=3),
    ]
    cfg.optim_wrapper.paramwise_cfg = dict(
        norm_decay_mult=0, custom_keys=dict(absolute_pos_embed=dict(decay_mult=0.0))
    )
    cfg.custom_hooks = [dict(type='EMAHook', priority='very_high')]
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', save_best=['coco/bbox_mAP'], published_keys=['state_dict']
    )


def normalized_once(case: Case) -> None:
    """By the pipeline, and not by the detector."""
    case.config.model.data_preprocessor = dict(type='DetDataPreprocessor', pad_size_divisor=32)
    for mode in ('train', 'val', 'test'):
        case.config[f'{mode}_dataloader'].dataset.pipeline.insert(4, NORMALIZE)


@pytest.mark.parametrize(
    'change',
    [
        epochs,
        normalized_once,
        mosaic,
        with_masks,
        outlines_of_none,
        negatives_beside_others,
        unlabelled,
        head_for(2, thing_classes=('cat', 'dog')),
        without_class,
        ignored_without_box,
        text_prompts,
        proposals_alone,
        lambda case: case.edit(lambda it: it['categories'].append(dict(id=9, name='horse'))),
        lambda case: case.config.val_cfg.update(type='TeacherStudentValLoop'),
        pretrained_with_prefix,
    ],
    ids=[
        *('epochs', 'normalized once'),
        *('mosaic of several data sets', 'masks', 'masks learnt from boxes'),
        *('negatives beside others', 'unlabelled', 'things of panoptic data', 'a class less'),
        *(
            'an ignored annotation without box',
            'text prompts',
            'proposals alone',
            'a class more in the file',
            "a loop of mmdet's own",
            'pretrained weights with a prefix',
        ),
    ],
)
def test_what_plain_mmdet_trains_is_not_refused(tmp_path: Path, change):
    case = sound_case(tmp_path / 'run', 'coco')
    change(case)
    verdicts = examine(PlannedRun(case.config, ('train', 'val'), whole=True))
    assert not [str(error) for it in verdicts for error in it.errors]


def test_a_normalization_over_processes_waits_for_its_launcher(tmp_path: Path):
    case = sound_case(tmp_path / 'run', 'coco')
    case.config.model.backbone.norm_cfg = dict(type='MMSyncBN')
    alone = examine(PlannedRun(case.config, ('train', 'val')))
    found = [str(error) for it in alone for error in it.errors]
    assert [each for each in found if 'add --launcher, or use BN' in each] == found[:1] == found
    case.config.launcher = 'pytorch'
    several = examine(PlannedRun(case.config, ('train', 'val')))
    assert not [str(error) for it in several for error in it.errors]


def test_a_runs_own_pipelines_keep_no_images_of_the_check(tmp_path: Path):
    case = sound_case(tmp_path / 'run', 'coco')
    case.train.pipeline.insert(2, dict(type='CachedMosaic', img_scale=(128, 96)))
    built = DATASETS.build(case.train)
    run = PlannedRun(case.config, ('train',), built=dict(train=built))
    assert {it.check.name: it.status for it in examine(run)}['pipelines'] == 'passed'
    assert built.pipeline.transforms[2].results_cache == []


def masks_without_boxes(case: Case) -> None:
    """A detector that learns from masks alone."""
    with_masks(case)
    case.config.model = Config.fromfile(MASKS_ALONE).model
    case.config.model.backbone.init_cfg = None
    case.config.model.panoptic_head.update(num_things_classes=3, num_stuff_classes=0)
    case.config.model.panoptic_head.loss_cls.class_weight = [1.0] * 3 + [0.1]
    case.config.model.panoptic_fusion_head.update(num_things_classes=3, num_stuff_classes=0)
    case.train.pipeline[1].with_bbox = False


def test_a_detector_of_masks_needs_no_boxes(tmp_path: Path):
    case = sound_case(tmp_path / 'run', 'coco')
    masks_without_boxes(case)
    verdicts = examine(PlannedRun(case.config, ('train',), whole=True))
    assert not [str(error) for it in verdicts for error in it.errors]


def test_three_faults_at_once_are_named_by_one_check_and_the_mended_set_trains(
    tmp_path: Path, tool, capsys
):
    case = sound_case(tmp_path / 'run', 'voc')
    xml(voc_object('dog'), voc_object('tvmonitor', 9, 9, 9, 40), count=2)(case)
    lost = case.folder / 'data/VOC2012/JPEGImages/2008_train_1.jpg'
    content = lost.read_bytes()
    lost.unlink()
    case.for_all(metainfo=dict(classes=('Dog', 'tvmonitor')))
    assert tool('check', case.write(), '--device', 'cpu', '--json', 'faults.json') == 2
    found = capsys.readouterr().out
    for part in ('2 of 4 boxes without an area', '2008_train_1.jpg', "'Dog'; write 'dog'"):
        assert part in found
    verdicts = {each['check']: each for each in json.loads((tmp_path / 'faults.json').read_text())}
    assert verdicts['labels']['verdict'] == verdicts['image files']['verdict'] == 'failed'
    lost.write_bytes(content)
    case.for_all(metainfo=dict(classes=('dog', 'tvmonitor')))
    assert tool('check', case.write(), '--device', 'cpu') == 0
    assert tool('train', case.write(), '--device', 'cpu', '--work-dir', 'work') == 0


def test_the_page_is_generated_from_the_table():
    """``PYTHONPATH=tests:. python tests/fault_page.py`` writes it."""
    assert fault_page.page() == fault_page.PAGE.read_text(encoding='utf-8')


def test_a_package_that_a_registry_imports_and_lacks_is_one_line(tmp_path):
    case = sound_case(tmp_path, 'coco')
    lazy = Check('registered types', lambda run: importlib.import_module('absent_of_a_registry'))
    (verdict,) = examine(PlannedRun(case.config, ('train',)), [lazy])
    (error,) = verdict.errors
    assert 'needs the package absent_of_a_registry, which is not installed; install it' in str(
        error
    )
