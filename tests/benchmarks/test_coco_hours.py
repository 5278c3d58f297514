"""benchmarks/coco_hours.py, on files as tools/benchmark.py writes them."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'benchmarks' / 'coco_hours.py'


@pytest.fixture
def measured(tmp_path: Path):
    """``measured(name, student, teacher, kd)`` writes a file of seconds; returns its path."""

    def write(name: str, student: float, teacher: float, kd: float, cached=False, **more) -> Path:
        path = tmp_path / f'{name}.json'
        numbers = dict(
            student_step_s=student,
            teacher_pass_s=teacher,
            kd_step_s=kd,
            batch_size=2,
            size=[800, 1333],
            device='cuda',
            threads=16,
            arguments=dict(config='configs/pair.py', amp=False, cached=cached),
        )
        path.write_text(json.dumps(numbers | more))
        return path

    return write


@pytest.fixture
def estimate(monkeypatch, capsys):
    """``estimate(*arguments)`` returns the cells of the table and the printed text."""

    def run(*arguments: object) -> tuple[list[list[str]], str]:
        monkeypatch.setattr(sys, 'argv', [str(SCRIPT), *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name='__main__')
        text = capsys.readouterr().out
        lines = [line for line in text.splitlines() if line.startswith('|')][2:]
        return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines], text

    return run


def test_hours_of_coco(measured, estimate):
    live = measured('live', 0.1, 0.05, 0.16)
    rows, text = estimate(live, measured('cached', 0.9, 0.001, 0.11, cached=True))
    # 7,330 steps of 16 images an epoch; a single device takes 58,633 of two.
    assert rows == [
        ['pair', 'GPU, 800 x 1333', '2']
        + [f'{seconds * 12 * 7330 / 3600:.1f}' for seconds in (0.1, 0.16, 0.11)]
        + [f'{0.05 * 58633 / 3600:.1f}']
    ]
    assert rows[0][3:] == ['2.4', '3.9', '2.7', '0.8']
    assert '12 epochs of 117,266 images on 8 devices' in text


def test_measurements_of_another_kind_have_their_own_row(measured, estimate):
    files = [
        measured('live', 1.0, 0.5, 1.5),
        measured('larger', 1.0, 0.5, 1.5, cached=True, batch_size=4),
        measured('cpu', 90.0, 9.0, 99.0, device='cpu', threads=2),
    ]
    rows, _ = estimate(*files, '--devices', 1, '--epochs', 1, '--images', 7)
    assert [row[2] for row in rows] == ['2', '4', '2']
    assert [row[5] for row in rows] == ['–', '0.0', '–']
    assert rows[1][4] == rows[1][6] == '–'
    assert rows[2][1] == 'cpu, 2 threads, 800 x 1333'


def test_other_files_and_repeated_measurements_are_refused(measured, estimate, tmp_path):
    live = measured('live', 1.0, 0.5, 1.5)
    with pytest.raises(SystemExit, match='measures the same'):
        estimate(live, measured('again', 1.0, 0.5, 1.5))
    other = tmp_path / 'other.json'
    other.write_text('{"student_step_s": 1}')
    with pytest.raises(SystemExit, match=r'other\.json: must be a file of tools/benchmark\.py'):
        estimate(other)
