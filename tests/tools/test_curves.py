"""tools/curves.py."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from tiny_runs import copied


def test_draws_losses_and_map(tool, runs, tmp_path, capsys):
    work_dirs = [runs / name for name in ('student_seed0', 'distilled_seed0')]
    assert tool('curves', *work_dirs, '--names', 'student', 'distilled', '--json', 'c.json') == 0
    assert capsys.readouterr().out.strip() == 'work_dirs/curves.png'
    with Image.open(tmp_path / 'work_dirs/curves.png') as figure:
        assert figure.width > 1400
    numbers = json.loads((tmp_path / 'c.json').read_text())
    assert numbers['student']['distillation'] == {} and numbers['student']['task']['steps']
    assert set(numbers['distilled']['distillation']) == {'loss_kd_cls', 'loss_kd_bbox'}
    assert numbers['distilled']['metric'] == 'coco/bbox_mAP'
    assert len(numbers['distilled']['validation']['values']) == 2


def test_another_metric(tool, runs, tmp_path):
    options = ('--metric', 'coco/bbox_mAP_50', '--out', 'c.png', '--json', 'c.json')
    assert tool('curves', runs / 'teacher', *options) == 0
    assert json.loads((tmp_path / 'c.json').read_text())['teacher']['metric'] == 'coco/bbox_mAP_50'


REFUSED = {
    'no folder': (('absent',), 'absent: no such folder'),
    'no work dir': (('empty',), 'empty: must be the work directory of a run'),
    'metric': (
        ('{runs}/short', '--metric', 'mAP'),
        "--metric: must be a logged metric, got 'mAP'",
    ),
    'nothing logged': (('silent',), 'silent: must have losses or metrics'),
    'out': (('{runs}/short', '--out', 'empty'), '--out: must be a file that ends in .png'),
    'names': (('{runs}/short', '--names', 'a', 'b'), '--names: must be 1 different titles'),
}


@pytest.mark.parametrize(('arguments', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_drawn_is_one_line(tool, runs, tmp_path, capsys, arguments, message):
    (tmp_path / 'empty').mkdir()
    silent = copied(runs, 'student_seed0', tmp_path / 'silent')
    for path in silent.glob('*/vis_data/scalars.json'):
        path.unlink()
    before = sorted(tmp_path.rglob('*'))
    assert tool('curves', *(word.format(runs=runs) for word in arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert sorted(tmp_path.rglob('*')) == before
