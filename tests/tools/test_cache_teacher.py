"""tools/cache_teacher.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_caches import teacher_of
from tiny_models import RPN_LOSSES, faster_rcnn, feature_loss
from tiny_training import training_config, write_coco

from mmkd.cache.files import MANIFEST, CacheReader
from mmkd.distillers.teacher_outputs import TeacherOutputs
from mmkd.teachers import CachedTeacher


@pytest.fixture
def make(tmp_path):
    """Writes the config of a distillation of six images, and its teacher: ``make(losses, **teacher)``."""
    data = write_coco(tmp_path / 'data', images=6)
    teacher = teacher_of(tmp_path / 'teacher.pth', faster_rcnn(channels=24))

    def write(losses: dict, model: dict | None = None, **options) -> Path:
        model = dict(
            dict(
                type='Distiller',
                student=faster_rcnn(),
                teacher=dict(teacher, **options),
                losses=losses,
            ),
            **(model or {}),
        )
        cfg = training_config(model, data, tmp_path / 'unused', iters=2)
        cfg.pop('work_dir')
        cfg.data_root = f'{data}/'
        cfg.test_dataloader.dataset.pipeline.pop(-2)  # no flip
        cfg.dump(str(tmp_path / 'tiny.py'))
        return tmp_path / 'tiny.py'

    return write


def refused(tool, capsys, *arguments) -> str:
    capsys.readouterr()
    assert tool('cache_teacher', *arguments, '--device', 'cpu', '--num-workers', 0) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix('mmkd: error: ')


def run(tool, capsys, *arguments) -> str:
    capsys.readouterr()
    assert tool('cache_teacher', *arguments, '--device', 'cpu', '--num-workers', 0) == 0
    return capsys.readouterr().out


def test_a_user_writes_a_cache_and_trains_without_the_teacher(tool, make, capsys, tmp_path):
    config = make(RPN_LOSSES, cache='caches/teacher', photometric=True, min_visible=0.25)
    said = run(tool, capsys, config)
    assert '6 images, about ' in said
    assert 'caches/teacher: 6 images (6 new), ' in said
    assert sorted(os.listdir('caches/teacher')) == ['00000.safetensors', MANIFEST]
    assert (
        run(tool, capsys, config, '--verify') == 'caches/teacher: 6 images, all checksums match\n'
    )
    # Once more: nothing is left to do.
    assert '(0 new)' in run(tool, capsys, config)
    (tmp_path / 'teacher.pth').unlink()
    assert tool('train', config, '--gpus', 0) == 0
    assert (tmp_path / 'work_dirs/tiny/iter_2.pth').is_file()


def test_the_folder_may_be_named_on_the_command_line(tool, make, capsys):
    config = make(RPN_LOSSES)
    assert (
        refused(tool, capsys, config)
        == '--out: must be a folder, got none; name one, or set teacher.cache'
    )
    said = run(tool, capsys, config, '--out', 'here', '--num-priors', 5, '--batch-size', 4)
    assert 'train with --cfg-options model.teacher.cache=here' in said
    fields = CacheReader('here')['0 0.png']
    assert len(fields['rpn.places']) == 20
    # Other numbers are another cache.
    line = refused(tool, capsys, config, '--out', 'here')
    assert (
        'its contents.rpn.num_priors is 20, not 1024; delete the folder, or choose another' in line
    )


def test_maps_are_asked_for(tool, make, capsys, monkeypatch):
    """With their size on disk; without a terminal, the error names it."""
    config = make(dict(loss_kd_neck=feature_loss()), cache='cache')
    line = refused(tool, capsys, config)
    assert line.startswith('feature maps: the losses read them, and they take ')
    assert line.endswith('B; confirm with --yes')
    assert not os.path.exists('cache')
    for answer, code in (('n', 2), ('', 2), ('y', 0)):
        monkeypatch.setattr('sys.stdin.isatty', lambda: True)
        monkeypatch.setattr('builtins.input', lambda _, answer=answer: answer)
        assert tool('cache_teacher', config, '--device', 'cpu', '--num-workers', 0) == code
        assert os.path.exists('cache') == (code == 0)
    told, size = capsys.readouterr().out, 0
    for path in Path('cache').glob('*.safetensors'):
        size += path.stat().st_size
    wanted = float(told.split(' each: ')[1].split(' kB')[0].split(' MB')[0])
    in_unit = size / (1e6 if ' MB in cache' in told else 1e3)
    assert wanted == pytest.approx(in_unit, rel=0.05)
    config = make(dict(loss_kd_neck=feature_loss()), cache='other')
    run(tool, capsys, config, '--yes')


def test_an_interrupt_loses_nothing(tool, make, capsys, monkeypatch):
    config = make(RPN_LOSSES, cache='cache')
    keep, calls = TeacherOutputs.extract_batch, []

    def interrupted(self, raw):
        calls.append(raw)
        if len(calls) == 5:  # the first image is asked once more, to tell sizes
            raise KeyboardInterrupt
        return keep(self, raw)

    monkeypatch.setattr(TeacherOutputs, 'extract_batch', interrupted)
    arguments = (config, '--device', 'cpu', '--num-workers', 0)
    assert tool('cache_teacher', *arguments) == 130
    assert 'mmkd: interrupted' in capsys.readouterr().err
    assert not json.loads(Path('cache', MANIFEST).read_text())['complete']
    assert 'is incomplete; run the same' in refused(tool, capsys, config, '--verify')
    assert tool('train', config, '--gpus', 0) == 2
    assert 'is incomplete; run the same' in capsys.readouterr().err
    said = run(tool, capsys, config)
    assert '3 images, about' in said
    assert 'cache: 6 images (3 new)' in said
    assert '6 images, all checksums match' in run(tool, capsys, config, '--verify')


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_cannot_be_read_is_named_and_what_was_cached_is_kept(
    tool, make, capsys, tmp_path, workers
):
    config = make(RPN_LOSSES, cache='cache')
    path = tmp_path / 'data/images/4.png'
    content = path.read_bytes()
    path.write_bytes(b'')
    arguments = (config, '--device', 'cpu', '--num-workers', workers)
    assert tool('cache_teacher', *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert '4.png is empty or cannot be read' in line
    path.write_bytes(content)
    said = run(tool, capsys, config)
    assert 'cache: 6 images' in said and '(6 new)' not in said


def test_damage_is_found(tool, make, capsys):
    config = make(RPN_LOSSES, cache='cache')
    run(tool, capsys, config)
    path = Path('cache/00000.safetensors')
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    assert 'the cache cache is damaged at image 5 5.png' in refused(
        tool, capsys, config, '--verify'
    )


def test_agreement_is_printed_view_by_view(tool, make, capsys):
    losses = dict(RPN_LOSSES, loss_kd_neck=feature_loss())
    config = make(losses, cache='cache')
    assert 'cache has no cache of a teacher' in refused(tool, capsys, config, '--check', 2)
    run(tool, capsys, config, '--yes')
    lines = run(tool, capsys, config, '--check', 2).splitlines()
    head, rows = lines[0], lines[1:]
    assert head.split() == ['view', 'kept', 'objects', 'found', 'IoU', 'score', 'cosine']
    assert len(rows) == 12  # six views of proposals' priors and maps
    maps = {row[:30].strip(): float(row.split()[-1]) for row in rows if ' maps ' in row}
    assert maps['as written'] == 1.0
    assert maps['flipped'] < 0.999
    # The cache of other losses lacks what these read.
    config = make(
        dict(losses, loss_kd=dict(type='MSE', student='backbone', teacher='backbone')),
        cache='cache',
    )
    assert 'does not contain backbone, which the losses read' in refused(
        tool, capsys, config, '--check', 2
    )


def test_several_teachers(tool, make, capsys, tmp_path):
    teacher = teacher_of(tmp_path / 'other.pth', faster_rcnn())
    losses = dict(loss_one=dict(RPN_LOSSES['loss_kd_rpn_cls']), loss_two=dict(feature_loss(16, 16)))
    losses['loss_two']['teacher_name'] = 'other'
    model = dict(teachers=dict(other=teacher))
    config = make(losses, model)
    assert refused(tool, capsys, config, '--out', 'a') == (
        '--teacher: must be one of teacher, other, got none; name one'
    )
    assert "--teacher: must be a teacher of the config, got 'othr'; near: other" in refused(
        tool, capsys, config, '--teacher', 'othr'
    )
    run(tool, capsys, config, '--out', 'a', '--teacher', 'teacher')
    said = run(tool, capsys, config, '--out', 'b', '--teacher', 'other', '--yes')
    assert 'train with --cfg-options model.teachers.other.cache=b' in said
    assert set(CacheReader('a').identity['contents']) == {'rpn'}
    assert set(CacheReader('b').identity['contents']) == {'maps'}
    (tmp_path / 'other.pth').unlink()
    options = ('model.teachers.other.cache=b', 'model.teacher.cache=a')
    assert tool('train', config, '--gpus', 0, '--cfg-options', *options) == 0
    line = refused(tool, capsys, config, '--cfg-options', *options)
    assert line == '--teacher: must be one of teacher, other, got none; name one'


def test_mistakes_are_told_in_one_line_and_nothing_is_written(tool, make, capsys):
    config = make(RPN_LOSSES, cache='cache')
    for options, message in (
        (('--cfg-options', 'model.type=FasterRCNN'), 'model.type must be Distiller'),
        (('--batch-size', 0), '--batch-size: must be at least 1, got 0'),
        (('--num-priors', 0), '--num-priors: must be at least 1, got 0'),
        (('--check', 0), '--check: must be at least 1, got 0'),
        (('--cfg-options', 'model.teacher.checkpoint=gone.pth'), 'gone.pth'),
        (('--cfg-options', 'model.teacher.checkpoint=None'), 'teacher.checkpoint: must be set'),
        (('--cfg-options', 'model.teacher.config=None'), 'teacher.config: must be set'),
        (('--cfg-options', 'data_root=elsewhere/'), 'elsewhere'),
        (('--cfg-options', 'model.teacher.ema.momentum=0.1'), 'the average of the student'),
        (('--cfg-options', 'model.losses.loss_kd_rpn_cls.align.type=RPNAlign'), 'RPNAlign'),
        (('--out', 'data'), 'data is not empty and not a cache'),
        (('--out', 'tiny.py'), 'tiny.py is a file, not a folder'),
        (('--verify',), 'cache has no cache of a teacher'),
    ):
        assert message in refused(tool, capsys, config, *options), options
    assert not Path('cache').exists()
    losses = dict(
        loss_kd=dict(
            type='MSE', student='roi_head.bbox_head.fc_cls', teacher='roi_head.bbox_head.fc_cls'
        )
    )
    line = refused(tool, capsys, make(losses, cache='cache'))
    assert line.startswith('losses.loss_kd: ')
    assert "set teacher.proposals='teacher'" in line
    assert not Path('cache').exists()


def test_schedules_and_starts_do_not_matter(tool, make, capsys):
    """A loss that begins late reads, too; and what a student starts with is no part of it."""
    losses = {
        name: dict(entry, schedule=dict(begin=5, unit='iter')) for name, entry in RPN_LOSSES.items()
    }
    config = make(losses, dict(init_student=dict(from_teacher=['backbone'])), cache='cache')
    run(tool, capsys, config)
    teacher = CachedTeacher('cache')
    assert all(weight.is_meta for weight in teacher.detector.parameters())
    assert set(teacher.reader.identity['contents']) == {'rpn'}


def test_the_same_images_twice_are_refused(tool, make, capsys):
    config = make(RPN_LOSSES, cache='cache')
    cfg = Config.fromfile(str(config))
    dataset = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset, dataset])
    cfg.dump(str(config))
    assert 'two images with id and file name 0 0.png' in refused(tool, capsys, config)
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=dataset)
    cfg.dump(str(config))
    assert '6 images (6 new)' in run(tool, capsys, config)
    assert len(torch.unique(torch.tensor([len(CacheReader('cache'))]))) == 1
