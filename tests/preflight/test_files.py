"""mmkd/preflight/files.py and mmkd/datasets/data_root.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmkd.datasets.data_root import replace_data_root
from mmkd.errors import ConfigError, MissingFileError
from mmkd.preflight import PlannedRun, require
from mmkd.preflight.files import check_checkpoint

CONFIGS = Path(__file__).parents[2] / 'configs'


def check_files(cfg: Config, modes: list[str]) -> None:
    require(PlannedRun(cfg, modes), only=('data files', 'weight files'))


def voc_config(root: str) -> Config:
    """VOC in the wrappers that mmdet's own config uses."""
    one = dict(
        type='VOCDataset',
        data_root=root,
        ann_file='VOC2012/ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root='VOC2012/'),
    )
    both = dict(type='ConcatDataset', datasets=[one, dict(one, ann_file='VOC2012/other.txt')])
    cfg = dict(
        data_root=root,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
        train_dataloader=dict(dataset=dict(type='RepeatDataset', times=3, dataset=both)),
    )
    return Config(cfg)


def lay_out_voc(root: Path) -> Path:
    for folder in ('ImageSets/Main', 'JPEGImages', 'Annotations'):
        (root / 'VOC2012' / folder).mkdir(parents=True)
    for name in ('ImageSets/Main/train.txt', 'other.txt'):
        (root / 'VOC2012' / name).write_text('')
    return root


def test_complete_data_passes(tmp_path):
    check_files(voc_config(str(lay_out_voc(tmp_path))), ['train'])


@pytest.mark.parametrize(
    ('lost', 'key'),
    [
        ('ImageSets/Main/train.txt', 'train_dataloader.dataset.dataset.datasets.0.ann_file'),
        ('other.txt', 'train_dataloader.dataset.dataset.datasets.1.ann_file'),
        ('JPEGImages', 'train_dataloader.dataset.dataset.datasets.0'),
        ('Annotations', 'train_dataloader.dataset.dataset.datasets.0'),
    ],
)
def test_each_missing_part_is_named_with_its_key_and_how_to_get_it(tmp_path, lost, key):
    path = lay_out_voc(tmp_path / 'VOCdevkit') / 'VOC2012' / lost
    path.rename(tmp_path / 'gone')
    with pytest.raises(MissingFileError) as error:
        check_files(voc_config(str(tmp_path / 'VOCdevkit')), ['train'])
    for part in (f'{key}: no such ', f'{path};', 'VOCtrainval_11-May-2012.tar', 'data_root=PATH/'):
        assert part in str(error.value)


def test_missing_coco_data_names_its_download():
    cfg = Config.fromfile(str(CONFIGS / 'students/faster-rcnn_mobilenetv2_fpn_10e_voc2012.py'))
    cfg.val_dataloader.dataset = dict(
        type='CocoDataset', data_root='data/coco/', ann_file='annotations/instances_val2017.json'
    )
    with pytest.raises(MissingFileError, match='images.cocodataset.org/zips/val2017.zip'):
        check_files(cfg, ['val'])


def test_own_data_is_not_taken_for_a_public_data_set():
    cfg = Config(dict(val_cfg=dict(), val_dataloader=dict()))
    for root, names in (('data/my_coco/', 'val.json'), ('data/my_VOC/', 'ImageSets/val.txt')):
        cfg.val_dataloader = dict(dataset=dict(type='CocoDataset', data_root=root, ann_file=names))
        with pytest.raises(MissingFileError, match=f'{root}.*put the data there'):
            check_files(cfg, ['val'])


def test_what_will_not_run_is_not_checked(tmp_path):
    cfg = voc_config(str(tmp_path / 'absent'))
    check_files(cfg, ['val', 'test'])
    cfg.train_cfg = None
    check_files(cfg, ['train'])


def test_data_behind_another_backend_is_left_alone():
    cfg = voc_config('s3://bucket/VOCdevkit')
    check_files(cfg, ['train'])


def test_missing_evaluator_annotations(tmp_path):
    lost = str(tmp_path / 'val.json')
    cfg = Config(dict(val_cfg=dict(), val_evaluator=[dict(type='CocoMetric', ann_file=lost)]))
    with pytest.raises(MissingFileError, match=r'val_evaluator\.0\.ann_file: .*val\.json') as error:
        check_files(cfg, ['val'])
    assert '--cfg-options val_evaluator.0.ann_file=FILE' in str(error.value)


def test_missing_pretrained_weights_name_the_option(tmp_path):
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'absent.pth'))
    cfg = Config(dict(model=dict(student=dict(backbone=dict(init_cfg=init)))))
    with pytest.raises(MissingFileError) as error:
        check_files(cfg, ['train'])
    assert '--cfg-options model.student.backbone.init_cfg.checkpoint=' in str(error.value)
    check_files(cfg, ['test'])  # testing starts from a checkpoint
    init['checkpoint'] = 'torchvision://resnet50'
    check_files(Config(dict(model=dict(backbone=dict(init_cfg=init)))), ['train'])


def test_missing_teacher_names_the_command_that_trains_it(tmp_path):
    config = tmp_path / 'teacher.py'
    config.write_text('')
    teacher = dict(config=str(config), checkpoint='work_dirs/teacher/epoch_10.pth')
    model = dict(teacher=teacher, losses=dict(loss_kd=dict(type='MSE')))
    with pytest.raises(MissingFileError) as error:
        check_files(Config(dict(model=model)), ['train'])
    assert 'work_dirs/teacher/epoch_10.pth' in str(error.value)
    assert 'mim train mmkd' in str(error.value)
    assert 'teacher.py' in str(error.value)
    check_files(Config(dict(model=model)), ['test'])  # needs no teacher
    check_files(Config(dict(model=dict(model, losses=dict(loss_kd=None)))), ['train'])


def test_missing_checkpoint_lists_its_neighbours(tmp_path):
    (tmp_path / 'epoch_2.pth').write_text('')
    check_checkpoint(str(tmp_path / 'epoch_2.pth'), '--resume')
    check_checkpoint('https://example.org/epoch_2.pth', '--resume')
    with pytest.raises(MissingFileError, match=r'--resume: .*epoch_3\.pth; .*epoch_2\.pth'):
        check_checkpoint(str(tmp_path / 'epoch_3.pth'), '--resume')


@pytest.mark.parametrize('new', ['elsewhere/VOCdevkit', 'elsewhere/VOCdevkit/'])
def test_data_root_is_moved_in_wrapped_datasets_and_evaluators(new):
    cfg = voc_config('data/VOCdevkit/')
    cfg.val_evaluator = [dict(type='CocoMetric', ann_file='data/VOCdevkit/val.json')]
    cfg.val_dataloader = dict(dataset=dict(data_root='data/VOCdevkit', ann_file='val.txt'))
    replace_data_root(cfg, new)
    datasets = cfg.train_dataloader.dataset.dataset.datasets
    assert [one.data_root for one in datasets] == ['elsewhere/VOCdevkit/'] * 2
    assert [one.ann_file for one in datasets] == [
        'VOC2012/ImageSets/Main/train.txt',
        'VOC2012/other.txt',
    ]
    assert cfg.val_evaluator[0].ann_file == 'elsewhere/VOCdevkit/val.json'
    assert cfg.val_dataloader.dataset.data_root == 'elsewhere/VOCdevkit/'
    assert cfg.data_root == 'elsewhere/VOCdevkit/'


def test_data_root_below_the_old_one_is_put_in_front_once():
    dataset = dict(type='CocoDataset', data_root='data/', ann_file='val.json')
    loader = dict(dataset=dataset)
    cfg = Config(dict(data_root='data/', val_dataloader=loader, test_dataloader=loader))
    cfg.test_dataloader = cfg.val_dataloader
    replace_data_root(cfg, 'data/more')
    assert cfg.val_dataloader.dataset.data_root == 'data/more/'


def test_folders_that_only_begin_alike_stay():
    cfg = Config(
        dict(
            data_root='data/coco',
            train_dataloader=dict(dataset=dict(data_root='data/coco')),
            val_dataloader=dict(dataset=dict(data_root='data/coco-minival')),
        )
    )
    replace_data_root(cfg, 'x')
    assert cfg.train_dataloader.dataset.data_root == 'x/'
    assert cfg.val_dataloader.dataset.data_root == 'data/coco-minival'


def test_data_root_that_would_change_nothing_is_refused():
    with pytest.raises(ConfigError, match='no top-level data_root'):
        replace_data_root(Config(dict(train_dataloader=dict())), 'x')
    cfg = Config(dict(data_root='a', train_dataloader=dict(dataset=dict(data_root='b'))))
    with pytest.raises(ConfigError, match='would change nothing'):
        replace_data_root(cfg, 'x')


def test_every_shipped_config_lets_its_data_root_be_moved():
    # `_base_` folders hold parts, not configs to run.
    paths = [path for path in sorted(CONFIGS.rglob('*.py')) if '_base_' not in path.parts]
    assert paths
    for path in paths:
        cfg = Config.fromfile(str(path))
        replace_data_root(cfg, 'moved/')
        for mode in ('train', 'val', 'test'):
            assert cfg[f'{mode}_dataloader'].dataset.data_root.startswith('moved/'), path
