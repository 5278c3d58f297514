"""The detectors of work directories."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from tiny_runs import copied

from mmkd.analysis.run_detectors import read_detectors
from mmkd.errors import ConfigError, MissingFileError


def rewrite(folder, change):
    """Change the config of a run."""
    for path in folder.glob('*/vis_data/config.py'):
        config = Config.fromfile(str(path))
        change(config)
        config.dump(str(path))


def test_each_run_is_its_own_student(runs):
    found = read_detectors([runs / 'teacher', runs / 'distilled_seed0'], names=['big', 'small'])
    assert [each.name for each in found] == ['big', 'small']
    assert found[0].score_thr is None and 0 <= found[1].score_thr <= 1  # only the other logged F1
    weights = torch.load(runs / 'distilled_seed0/epoch_2.pth', weights_only=False)['state_dict']
    assert set(found[1].detect(pseudo_collate([found[1].dataset[0]])).labels) <= {0, 1}
    assert not any(key.startswith('teacher') for key in weights)


def test_the_teacher_comes_first_and_once(runs):
    paths = [runs / 'distilled_seed0', runs / 'distilled_seed1', runs / 'teacher']
    found = read_detectors(paths, names=['a', 'b', 'c'], teachers=True)
    assert [each.name for each in found] == ['teacher', 'a', 'b', 'c']
    # The same weights on the same image: the student's pipeline is the teacher's here.
    taught, own = found[0].detections(1), found[3].detections(1)
    assert taught.boxes == pytest.approx(own.boxes) and taught.scores == pytest.approx(own.scores)


def test_a_teacher_of_more_classes_keeps_the_shared_ones(runs, tmp_path):
    folder = copied(runs, 'distilled_seed0', tmp_path / 'distilled')
    names = ('dog', 'people')  # where the teacher of the run has person and dog

    def rename(config):
        config.model.teacher['classes'] = names

    rewrite(folder, rename)
    (teacher, _) = read_detectors([folder], teachers=True)
    (plain, _) = read_detectors([runs / 'distilled_seed0'], teachers=True)
    assert (teacher.detections(0).labels == 1 - plain.detections(0).labels).all()

    rewrite(folder, lambda config: config.model.teacher.update(classes=('cat', 'dog')))
    (teacher, _) = read_detectors([folder], teachers=True)
    assert set(teacher.detections(0).labels) <= {1} and len(teacher.detections(0)) < len(
        plain.detections(0)
    )


def test_an_unfinished_run_has_its_last_checkpoint(runs, tmp_path):
    folder = copied(runs, 'student_seed0', tmp_path / 'student')
    (folder / 'epoch_2.pth').unlink()
    (folder / 'last_checkpoint').write_text('epoch_1.pth')
    one, first = read_detectors([folder, runs / 'short'], names=['one', 'first'])
    assert one.detections(0).scores.shape == first.detections(0).scores.shape
    (folder / 'epoch_1.pth').unlink()
    with pytest.raises(MissingFileError, match='epoch_2.pth does not exist .epoch 1 of 2 is done'):
        read_detectors([folder])


def other_classes(folder):
    def change(config):
        config.val_dataloader.dataset.metainfo = dict(classes=('person',))

    rewrite(folder, change)


def other_images(folder):
    content = json.loads((folder.parent / 'data/annotations.json').read_text())
    content['images'] = content['images'][:2]
    content['annotations'] = [each for each in content['annotations'] if each['image_id'] < 2]
    (folder / 'fewer.json').write_text(json.dumps(content))
    rewrite(
        folder,
        lambda config: config.val_dataloader.dataset.update(ann_file=str(folder / 'fewer.json')),
    )


def no_checkpoint(folder):
    (folder / 'epoch_2.pth').unlink()


REFUSED = {
    'classes': (
        other_classes,
        ConfigError,
        r'must have the classes of .*\(person, dog\), got person',
    ),
    'images': (
        other_images,
        ConfigError,
        'must be validated on the 4 images of .*, got 2 other images',
    ),
    'checkpoint': (no_checkpoint, MissingFileError, 'its checkpoint epoch_2.pth does not exist'),
    'data': (
        lambda folder: rewrite(folder, lambda c: c.pop('val_dataloader')),
        ConfigError,
        'no val_dataloader',
    ),
}


@pytest.mark.parametrize(('change', 'error', 'says'), REFUSED.values(), ids=REFUSED)
def test_runs_that_do_not_compare_are_refused(runs, tmp_path, change, error, says):
    folder = copied(runs, 'student_seed0', tmp_path / 'student')
    shutil.copytree(runs / 'data', tmp_path / 'data')
    change(folder)
    with pytest.raises(error, match=says):
        read_detectors([runs / 'teacher', folder])


@pytest.mark.parametrize(
    ('names', 'options', 'says'),
    [
        (('student_seed0', 'student_seed0'), {}, 'named twice'),
        (('student_seed0',), dict(names=['a', 'b']), '--names: must be 1 different titles'),
        (('student_seed0',), dict(teachers=True), '--teacher: needs a distilled run'),
        (
            ('distilled_seed0', 'teacher'),
            dict(teachers=True),
            "--names: must not be 'teacher' with --teacher",
        ),
    ],
)
def test_wrong_arguments(runs, names, options, says):
    with pytest.raises(ConfigError, match=says):
        read_detectors([runs / name for name in names], **options)


def test_a_teacher_without_weights_of_its_own_is_refused(runs, tmp_path):
    folder = copied(runs, 'distilled_seed0', tmp_path / 'distilled')

    def average(config):
        config.model.teacher = dict(ema=dict(type='ExpMomentumEMA'))

    rewrite(folder, average)
    with pytest.raises(
        ConfigError, match='model.teacher must have a config and a checkpoint, got ema'
    ):
        read_detectors([folder], teachers=True)
