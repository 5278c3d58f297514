"""What work directories tell, finished, resumed, tested, interrupted; and what is none."""

from __future__ import annotations

import json
import re

import pytest
from tiny_models import faster_rcnn
from tiny_runs import config_of, copied, edit_log, run_test, set_scores
from tiny_training import train

from mmkd.analysis.work_dir import comparable_config, read_work_dir
from mmkd.errors import ConfigError, MissingFileError


def logged(work_dir, epoch):
    """The last validation of an epoch, straight from the logs."""
    text = ''.join(p.read_text() for p in sorted(work_dir.glob('*/vis_data/scalars.json')))
    records = [json.loads(line) for line in text.splitlines()]
    return [r for r in records if 'iter' not in r and r['step'] == epoch][-1]


def test_a_training_tells_its_last_epoch(runs):
    found = read_work_dir(runs / 'distilled_seed1')
    record = logged(runs / 'distilled_seed1', 2)
    assert found.scores == {
        'mAP': record['coco/bbox_mAP'],
        'AP50': record['coco/bbox_mAP_50'],
        'F1': record['coco/bbox_F1'],
    }
    assert (found.trained, found.length, found.unit, found.seed) == (2, 2, 'epoch', 1)
    assert found.checkpoint == str(runs / 'distilled_seed1/epoch_2.pth')
    assert found.finished and found.distilled and found.names == ('distilled_seed1',)
    assert found.deployed().model.type == 'FasterRCNN' and found.config.model.type == 'Distiller'
    assert 'F1' not in read_work_dir(runs / 'student_seed0').scores


def test_a_resumed_training_is_one(runs):
    found = read_work_dir(runs / 'teacher')
    assert found.scores['mAP'] == logged(runs / 'teacher', 2)['coco/bbox_mAP']
    assert (found.trained, found.length) == (2, 2)


def test_the_best_epoch_and_its_checkpoint(runs, tmp_path):
    folder = copied(runs, 'student_seed0', tmp_path / 'student')
    set_scores(folder, mAP=0.0, AP50=0.0)
    edit_log(folder, lambda r: r | {'coco/bbox_mAP': 0.4} if r['step'] == 1 else r)
    assert read_work_dir(folder).scores['mAP'] == 0.0
    best = read_work_dir(folder, best=True)
    assert (best.scores['mAP'], best.trained) == (0.4, 2)
    assert best.checkpoint == str(folder / 'epoch_1.pth')
    (folder / 'epoch_1.pth').rename(folder / 'best_coco_bbox_mAP_epoch_1.pth')
    found = read_work_dir(folder, best=True)
    assert found.checkpoint == str(folder / 'best_coco_bbox_mAP_epoch_1.pth') and not found.notes
    (folder / 'best_coco_bbox_mAP_epoch_1.pth').unlink()
    found = read_work_dir(folder, best=True)
    assert found.checkpoint is None and found.notes == ['epoch_1.pth does not exist any more']


def interrupted(folder):
    """As a training leaves it that is killed in its second epoch."""
    (folder / 'epoch_2.pth').unlink()
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    edit_log(folder, lambda r: r if r.get('epoch', r['step']) == 1 else None)
    return folder


def test_an_interrupted_training_has_no_numbers(runs, tmp_path):
    found = read_work_dir(interrupted(copied(runs, 'student_seed0', tmp_path / 'student')))
    assert not found.finished and (found.trained, found.length) == (1, 2)
    assert found.scores == {} and found.checkpoint is None


def test_a_training_begun_anew_forgets_the_former(runs, tmp_path):
    """Of three epochs first, then of two; and as long as the second is at its first epoch."""
    folder = copied(runs, 'student_seed0', tmp_path / 'student')
    (old,) = folder.glob('*/')
    third = {'coco/bbox_mAP': 0.9, 'step': 3}
    with open(old / 'vis_data/scalars.json', 'a') as file:
        file.write(json.dumps(third) + '\n')
    (folder / 'epoch_3.pth').write_bytes((folder / 'epoch_2.pth').read_bytes())
    (new,) = copied(runs, 'student_seed1', tmp_path / 'new').glob('*/')
    new.rename(folder / '29991231_000000')
    found = read_work_dir(folder)
    assert found.finished and found.seed == 1 and found.checkpoint.endswith('epoch_2.pth')
    assert found.scores['mAP'] == logged(runs / 'student_seed1', 2)['coco/bbox_mAP']
    assert read_work_dir(folder, best=True).scores['mAP'] < 0.9

    for record in (folder / '29991231_000000').glob('vis_data/scalars.json'):
        record.write_text(record.read_text().splitlines()[0] + '\n')
    found = read_work_dir(folder)
    assert (found.finished, found.trained, found.scores) == (False, 0, {})


@pytest.fixture
def moved(runs, tmp_path):
    """A copy of the first student, with tests in it: of its own weights and of the distilled."""
    folder = copied(runs, 'student_seed0', tmp_path / 'student')
    root = tmp_path
    (root / 'data').symlink_to(runs / 'data')
    edit = re.compile(re.escape(str(runs / 'data')))
    for path in folder.glob('**/*.py'):
        path.write_text(edit.sub(str(root / 'data'), path.read_text()))
    run_test(root, 'student', runs / 'distilled_seed0/epoch_2.pth', faster_rcnn(classes=2))
    (metrics,) = folder.glob('*/*.json')  # of another second than the tests to come
    metrics.rename(metrics.with_stem('20000101_000000')).parent.rename(folder / '20000101_000000')
    return folder


def test_a_test_fills_what_was_not_logged(moved, tmp_path):
    """Only one of the same weights: that of others, which lands there by default, tells nothing."""
    before = read_work_dir(moved)
    assert 'F1' not in before.scores and not before.notes
    run_test(tmp_path, 'student', moved / 'epoch_2.pth', faster_rcnn(classes=2))
    tested = max(moved.glob('*/*.json'))
    after = read_work_dir(moved)
    assert after.scores == before.scores | {'F1': json.loads(tested.read_text())['coco/bbox_F1']}
    assert after.notes == [f'F1 from the test {tested.stem}']
    assert (after.trained, after.seed) == (2, 0)


def test_a_test_on_other_images_fills_nothing(runs, moved, tmp_path):
    other = {'test_dataloader.dataset.indices': 2}
    run_test(tmp_path, 'student', moved / 'epoch_2.pth', faster_rcnn(classes=2), **other)
    assert 'F1' not in read_work_dir(moved).scores


def test_a_test_alone_is_read_too(runs, tmp_path):
    (tmp_path / 'data').symlink_to(runs / 'data')
    weights = runs / 'student_seed0/epoch_2.pth'
    run_test(tmp_path, 'tested', weights, faster_rcnn(classes=2))
    found = read_work_dir(tmp_path / 'tested')
    assert set(found.scores) == {'mAP', 'AP50', 'F1'}
    assert found.scores['mAP'] == read_work_dir(weights.parent).scores['mAP']
    assert (found.trained, found.checkpoint) == (None, str(weights)) and found.finished


def test_a_training_counted_in_iterations(runs, tmp_path):
    (tmp_path / 'data').symlink_to(runs / 'data')
    cfg = config_of(tmp_path, 'steps', faster_rcnn(classes=2), epochs=1)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3, val_interval=2)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.experiment_name = cfg.visualizer.name = str(tmp_path)
    train(cfg)
    found = read_work_dir(tmp_path / 'steps')
    assert (found.trained, found.length, found.unit) == (3, 3, 'iter')
    assert found.checkpoint == str(tmp_path / 'steps/iter_3.pth') and 'mAP' in found.scores


def test_a_training_without_a_log_has_its_checkpoint(runs, tmp_path):
    folder = copied(runs, 'student_seed0', tmp_path / 'student')
    for path in folder.glob('*/vis_data/*'):
        path.unlink()
    found = read_work_dir(folder)
    assert found.finished and found.scores == {} and found.checkpoint.endswith('epoch_2.pth')


def test_what_is_no_work_directory_is_named(runs, tmp_path):
    with pytest.raises(MissingFileError, match='absent: no such folder'):
        read_work_dir(tmp_path / 'absent')
    file = tmp_path / 'file'
    file.touch()
    with pytest.raises(ConfigError, match='file: must be the work directory of a run, got a file'):
        read_work_dir(file)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(
        ConfigError,
        match='empty: must be the work directory of a run, but contains no training run$',
    ):
        read_work_dir(tmp_path / 'empty')
    with pytest.raises(
        ConfigError, match='name one of its folders: .*student_seed0, student_seed1'
    ):
        read_work_dir(runs)
    (tmp_path / 'two').mkdir()
    for name in 'ab':
        (tmp_path / 'two' / f'{name}.py').write_text('model = dict()\n')
    with pytest.raises(ConfigError, match='several configs'):
        read_work_dir(tmp_path / 'two')
    (tmp_path / 'two/a.py').write_text('raise RuntimeError("a script, not a config")\n')
    (tmp_path / 'two/b.py').unlink()
    with pytest.raises(ConfigError, match='two: must be .* but contains no training run$'):
        read_work_dir(tmp_path / 'two')
    (tmp_path / 'two/a.py').write_text('model = dict()\n')
    (tmp_path / 'two/epoch_1.pth').touch()
    with pytest.raises(ConfigError, match='must have model and train_cfg'):
        read_work_dir(tmp_path / 'two')


def test_essence_is_plain_and_leaves_out():
    node = dict(a=(1, dict(_scope_='mmdet', b='/data/x')), c=None)
    assert comparable_config(node, ('_scope_',), '/data/') == dict(a=[1, dict(b='x')], c=None)
