"""tools/test.py."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from mmengine.config import Config
from tiny_models import faster_rcnn, save_teacher


@pytest.fixture
def checkpoint(tmp_path):
    return save_teacher(tmp_path / 'weights.pth', faster_rcnn())


def results(folder) -> dict:
    return json.loads(next(folder.glob('*/*.json')).read_text())


def test_f1_is_added_and_leaves_the_other_numbers_as_they_are(tool, config, checkpoint, tmp_path):
    assert tool('test', config, checkpoint, '--device', 'cpu', '--work-dir', 'plain') == 0
    assert tool('test', config, checkpoint, '--device', 'cpu', '--work-dir', 'f1', '--f1') == 0
    plain, with_f1 = results(tmp_path / 'plain'), results(tmp_path / 'f1')
    assert 'coco/bbox_F1' in with_f1
    assert 'coco/bbox_F1' not in plain
    for key in ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75'):
        assert plain[key] == with_f1[key]


def test_f1_needs_a_coco_metric(tool, config, checkpoint, capsys):
    cfg = Config.fromfile(str(config))
    cfg.test_evaluator = dict(type='VOCMetric', metric='mAP')
    cfg.dump(str(config))
    assert tool('test', config, checkpoint, '--f1') == 2
    assert "['VOCMetric']" in capsys.readouterr().err


def test_predictions_are_written(tool, config, checkpoint, tmp_path):
    assert tool('test', config, checkpoint, '--device', 'cpu', '--out', 'out.pkl') == 0
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(predictions) == 8
    assert predictions[0]['pred_instances']['bboxes'].shape[1] == 4


def test_predictions_are_not_written_to_another_format(tool, config, checkpoint, capsys):
    assert tool('test', config, checkpoint, '--out', 'out.json') == 2
    assert '.pkl' in capsys.readouterr().err


def test_test_time_augmentation_merges_both_views(tool, config, checkpoint, tmp_path):
    arguments = ('--device', 'cpu', '--tta', '--out', 'tta.pkl')
    assert tool('test', config, checkpoint, *arguments) == 0
    predictions = pickle.loads((tmp_path / 'tta.pkl').read_bytes())
    assert len(predictions) == 8
    assert max(len(one['pred_instances']['scores']) for one in predictions) <= 100


def test_where_training_starts_from_is_not_needed(tool, config, checkpoint, tmp_path):
    option = f'load_from={tmp_path / "absent.pth"}'
    assert tool('test', config, checkpoint, '--device', 'cpu', '--cfg-options', option) == 0


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        (faster_rcnn(classes=4), 'of another shape: roi_head.bbox_head.fc_cls.weight'),
        (dict(faster_rcnn(), roi_head=None), 'missing: roi_head.'),
    ],
    ids=['classes', 'entries'],
)
def test_a_checkpoint_of_another_detector_is_refused(
    tool, config, tmp_path, capsys, other, message
):
    weights = save_teacher(tmp_path / 'other.pth', other)
    assert tool('test', config, weights, '--device', 'cpu') == 2
    line = capsys.readouterr().err
    assert 'other.pth does not belong to this FasterRCNN' in line and message in line


def test_entries_that_the_detector_lacks_are_left_out(tool, config, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    content['state_dict']['backbone.fc.weight'] = torch.zeros(3)
    torch.save(content, checkpoint)
    assert tool('test', config, checkpoint, '--device', 'cpu') == 0


def test_missing_checkpoint_names_those_that_are_there(tool, config, checkpoint, capsys):
    assert tool('test', config, checkpoint.with_name('epoch_9.pth')) == 2
    message = capsys.readouterr().err
    assert 'epoch_9.pth' in message
    assert 'weights.pth' in message
