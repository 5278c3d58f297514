"""tools/report.py."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image
from tiny_runs import copied, edit_log, set_scores

QUICK = ('--device', 'cpu', '--no-latency', '--image-size', 64, 96)


def lines_of(path):
    with open(path, encoding='utf-8') as file:
        return {line['name']: line for line in csv.DictReader(file)}


def test_writes_table_csv_and_figure(tool, runs, tmp_path, capsys):
    names = ('teacher', 'student_seed0', 'student_seed1', 'distilled_seed0', 'distilled_seed1')
    work_dirs = [runs / name for name in names]
    assert tool('report', *work_dirs, '--device', 'cpu', '--evaluate', '--image-size', 64, 96) == 0
    out = tmp_path / 'work_dirs/report'
    assert sorted(path.name for path in out.iterdir()) == ['report.csv', 'report.md', 'report.png']
    text = (out / 'report.md').read_text()
    assert text in capsys.readouterr().out
    assert 'torch' not in text and 'Figures' not in text
    lines = lines_of(out / 'report.csv')
    assert [line['role'] for line in lines.values()] == ['teacher', 'baseline', 'distilled']
    distilled = lines['distilled']
    assert distilled['parameters'] == lines['student']['parameters']
    assert float(lines['student']['F1']) >= 0 and float(distilled['ms_per_image']) > 0
    assert distilled['device'] and distilled['image_size'] == '64x96'
    assert float(distilled['gain_points']) == pytest.approx(
        100 * (float(distilled['mAP']) - float(lines['student']['mAP']))
    )
    with Image.open(out / 'report.png') as image:
        assert image.width > 800
        colours = np.unique(np.asarray(image.convert('RGB')).reshape(-1, 3), axis=0)
    assert {(15, 118, 110), (217, 119, 6)} <= set(
        map(tuple, colours.tolist())
    )  # teacher, distilled


def test_best_epochs_without_latency(tool, runs, tmp_path, capsys):
    student = copied(runs, 'student_seed0', tmp_path / 'student')
    set_scores(student, mAP=0.1)
    edit_log(student, lambda r: r | {'coco/bbox_mAP': 0.35} if r['step'] == 1 else r)
    arguments = (student, *QUICK)
    assert tool('report', *arguments, '--out', 'last') == 0
    assert 'after the last epoch of each run' in capsys.readouterr().out
    assert tool('report', *arguments, '--out', 'best', '--best') == 0
    output = capsys.readouterr().out
    assert 'best epoch' in output
    last, best = (lines_of(tmp_path / name / 'report.csv')['student'] for name in ('last', 'best'))
    assert (last['mAP'], best['mAP'], best['trained']) == ('0.1', '0.35', '2')
    assert best['checkpoint'].endswith('epoch_1.pth')
    assert last['ms_per_image'] == '' and last['role'] == 'other'


def test_unfinished_beside_finished(tool, runs, tmp_path, capsys):
    folder = copied(runs, 'student_seed0', tmp_path / 'student')
    (folder / 'epoch_2.pth').unlink()
    (folder / 'last_checkpoint').write_text('epoch_1.pth')
    assert tool('report', folder, runs / 'teacher', *QUICK, '--out', 'out') == 0
    assert '- student: unfinished: epoch 1 of 2.' in capsys.readouterr().out
    line = lines_of(tmp_path / 'out/report.csv')['student']
    assert (line['trained'], line['planned'], line['mAP'], line['parameters']) == ('1', '2', '', '')
    assert tool('report', folder, *QUICK, '--out', 'none') == 2
    assert 'no run is finished, got student' in capsys.readouterr().err
    assert not (tmp_path / 'none').exists()


REFUSED = {
    'absent': (('absent',), 'absent: no such folder'),
    'file': (('file',), 'file: must be the work directory of a run, got a file'),
    'empty': (('empty',), 'empty: must be the work directory of a run'),
    'out': (('{runs}/teacher', '--out', 'file'), '--out: must be a folder, got the file file'),
    'size': (('{runs}/teacher', '--image-size', '8', '64'), 'at least 32 px each'),
    'threads': (('{runs}/teacher', '--threads', '0'), '--threads: must be at least 1, got 0'),
    'form': (
        ('{runs}/teacher', '--teacher', 'x'),
        "--teacher: must be DISTILLED=WORK_DIR, got 'x'",
    ),
    'other': (
        ('{runs}/teacher', '--baseline', '{runs}/teacher={runs}/short'),
        'must be one of the work directories',
    ),
    'pair': (
        ('{runs}/teacher', '--baseline', '{runs}/teacher={runs}/teacher'),
        'must be a distilled student',
    ),
}


@pytest.mark.parametrize(('arguments', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_reported_is_one_line(tool, runs, tmp_path, capsys, arguments, message):
    (tmp_path / 'file').touch()
    (tmp_path / 'empty').mkdir()
    before = sorted(tmp_path.rglob('*'))
    assert tool('report', *QUICK, *(word.format(runs=runs) for word in arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert sorted(tmp_path.rglob('*')) == before


def test_a_broken_checkpoint_leaves_the_former_report(tool, runs, tmp_path, capsys):
    folder = copied(runs, 'student_seed0', tmp_path / 'student')
    assert tool('report', folder, *QUICK, '--out', 'out') == 0
    before = (tmp_path / 'out/report.md').read_text()
    (folder / 'epoch_2.pth').write_bytes(b'not weights')
    assert tool('report', folder, *QUICK, '--out', 'out') == 2
    assert 'epoch_2.pth' in capsys.readouterr().err
    assert (tmp_path / 'out/report.md').read_text() == before
    assert len(list((tmp_path / 'out').iterdir())) == 3
