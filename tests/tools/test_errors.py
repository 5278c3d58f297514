"""tools/errors.py."""

from __future__ import annotations

import json

import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image


def test_runs_and_their_result_files_have_the_same_errors(tool, runs, tmp_path, capsys):
    work_dirs = [runs / name for name in ('student_seed0', 'distilled_seed0')]
    names = ('--names', 'student', 'distilled', '--device', 'cpu')
    assert tool('errors', *work_dirs, *names, '--json', 'runs.json') == 0
    output = capsys.readouterr().out
    assert 'dAP localisation' in output and 'student, small' in output
    with Image.open(tmp_path / 'work_dirs/errors.png') as figure:
        assert figure.width > 1300
    numbers = json.loads((tmp_path / 'runs.json').read_text())
    assert set(numbers) == {'student', 'distilled'} and numbers['student']['objects']['all'] == 8
    # What mmdet's own metric writes.
    for name, path in zip(('student', 'distilled'), work_dirs, strict=True):
        cfg = Config.fromfile(str(next(path.glob('*/vis_data/config.py'))))
        cfg.model = cfg.model.get('student') or cfg.model
        cfg.work_dir, cfg.load_from = str(tmp_path / 'test'), str(path / 'epoch_2.pth')
        cfg.test_evaluator.update(type='CocoMetric', outfile_prefix=str(tmp_path / name))
        cfg.test_dataloader = cfg.val_dataloader | dict(batch_size=1)
        cfg.experiment_name = cfg.visualizer.name = str(tmp_path / name)
        Runner.from_cfg(cfg).test()
    files = ('student.bbox.json', 'distilled.bbox.json')
    options = (
        '--ann-file',
        runs / 'data/annotations.json',
        '--json',
        'files.json',
        '--out',
        'e.png',
    )
    assert tool('errors', *files, *options) == 0
    again = json.loads((tmp_path / 'files.json').read_text())
    assert list(again) == ['student', 'distilled']
    for name, each in numbers.items():
        assert again[name]['count'] == each['count']
        assert again[name]['AP50'] == pytest.approx(each['AP50'])


REFUSED = {
    'no work dir': (('empty',), 'empty: must be the work directory of a run'),
    'no file': (
        ('none.json', '--ann-file', '{runs}/data/annotations.json'),
        'none.json: no such file',
    ),
    'no truth': (
        ('none.json', '--ann-file', 'absent.json'),
        '--ann-file: no such file: absent.json',
    ),
    'classes': (('{runs}/short', '--classes', 'dog'), '--classes: needs --ann-file'),
    'teacher': (
        ('a.json', '--ann-file', 'b.json', '--teacher'),
        '--ann-file: cannot be combined with --teacher',
    ),
    'out': (
        ('{runs}/short', '--out', 'e.pdf'),
        '--out: must be a file that ends in .png, got e.pdf',
    ),
}


@pytest.mark.parametrize(('arguments', 'message'), REFUSED.values(), ids=REFUSED)
def test_wrong_input_is_one_line(tool, runs, tmp_path, capsys, arguments, message):
    (tmp_path / 'empty').mkdir()
    before = sorted(tmp_path.rglob('*'))
    assert tool('errors', '--device', 'cpu', *(word.format(runs=runs) for word in arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert sorted(tmp_path.rglob('*')) == before
