"""tools/compare.py."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from tiny_runs import copied

QUICK = ('--device', 'cpu', '--score-thr', 0.05)


def test_draws_where_runs_differ_most(tool, runs, tmp_path, capsys):
    work_dirs = [runs / name for name in ('teacher', 'student_seed0', 'distilled_seed0')]
    options = ('--most-different', 2, '--json', 'numbers.json')
    assert tool('compare', *work_dirs, *options, *QUICK) == 0
    with Image.open(tmp_path / 'work_dirs/comparison.png') as figure:
        assert figure.width > 1400 and figure.height > 500
    numbers = json.loads((tmp_path / 'numbers.json').read_text())
    assert list(numbers['detectors']) == ['teacher', 'student_seed0', 'distilled_seed0']
    assert numbers['images_judged'] == 4
    differences = [each['difference'] for each in numbers['chosen']]
    assert differences == sorted(differences, reverse=True)
    output = capsys.readouterr()
    for each in numbers['chosen']:
        assert each['image'].rpartition('/')[2] in output.out
    assert 'work_dirs/comparison.png' in output.out and 'creating index' not in output.out


def test_draws_named_images_with_the_teacher(tool, runs, tmp_path):
    options = ('--images', '3.png', '1', '--teacher', '--names', 'distilled', '--out', 'c.png')
    assert tool('compare', runs / 'distilled_seed0', *options, '--json', 'c.json', *QUICK) == 0
    numbers = json.loads((tmp_path / 'c.json').read_text())
    assert list(numbers['detectors']) == ['teacher', 'distilled']
    assert [each['id'] for each in numbers['chosen']] == [3, 1]
    assert numbers['images_judged'] == 2


REFUSED = {
    'no folder': (('{runs}/short', 'absent'), 'absent: no such folder'),
    'no work dir': (('{runs}/short', 'empty'), 'empty: must be the work directory of a run'),
    'one': (('{runs}/short',), '--most-different: needs two detectors, got one'),
    'number': (
        ('{runs}/short', '{runs}/teacher', '--most-different', '0'),
        '--most-different: must be 1 to 50 images, got 0',
    ),
    'image': (('{runs}/short', '--images', '9.png'), '--images: 9.png is none of the 4 images'),
    'score': (
        ('{runs}/short', '--images', '1', '--score-thr', '3'),
        '--score-thr: must be in [0, 1], got 3.0',
    ),
    'out': (('{runs}/short', '--images', '1', '--out', 'file/c.png'), '--out: must be in a folder'),
    'ending': (
        ('{runs}/short', '--images', '1', '--out', 'c.jpg'),
        '--out: must be a file that ends in .png',
    ),
    'json': (
        ('{runs}/short', '--images', '1', '--json', 'empty'),
        '--json: must be a file that ends in .json',
    ),
    'checkpoint': (('broken', '--images', '1'), 'epoch_2.pth'),
}


@pytest.mark.parametrize(('arguments', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compared_is_one_line(tool, runs, tmp_path, capsys, arguments, message):
    (tmp_path / 'file').touch()
    (tmp_path / 'empty').mkdir()
    (copied(runs, 'student_seed0', tmp_path / 'broken') / 'epoch_2.pth').write_bytes(b'no weights')
    before = sorted(tmp_path.rglob('*'))
    arguments = [word.format(runs=runs) for word in arguments]
    assert tool('compare', '--device', 'cpu', *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1 and message in lines[0], lines
    assert sorted(tmp_path.rglob('*')) == before
