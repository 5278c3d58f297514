"""benchmarks/teacher_passes.py, on a pair of tiny detectors."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from tiny_models import CLASSES, ROI_LOSSES, faster_rcnn
from tiny_training import training_config

SCRIPT = Path(__file__).parents[2] / 'benchmarks' / 'teacher_passes.py'


@pytest.fixture
def run(monkeypatch, tmp_path):
    """``run(model, *arguments)`` runs the script on a config of a model; returns its exit code."""

    def run(model, *arguments):
        cfg = training_config(model, tmp_path, tmp_path / 'unused')
        cfg.dump(str(tmp_path / 'distil.py'))
        given = (tmp_path / 'distil.py', '--device', 'cpu', '--iterations', 1, '--warmup', 0)
        monkeypatch.setattr(sys, 'argv', [str(SCRIPT), *map(str, given + arguments)])
        try:
            runpy.run_path(str(SCRIPT), run_name='__main__')
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


def model(**changes):
    teacher = dict(config=dict(model=faster_rcnn()), checkpoint='none.pth', classes=CLASSES)
    distiller = dict(
        type='Distiller', student=faster_rcnn(), teacher=teacher, losses=ROI_LOSSES, classes=CLASSES
    )
    return distiller | changes


def test_each_way_to_run_the_teacher_is_a_row(run, capsys):
    size = ('--size', 64, '--batch-size', 1)
    assert run(model(), *size, '--variants', 'bfloat16') == 0
    rows = re.findall(r'^\| ([a-z]\w.*?) \|.* ([\d.e-]+) \|$', capsys.readouterr().out, re.M)
    differences = {name: float(number) for name, number in rows}
    assert list(differences) == ['plain', 'bfloat16']
    assert differences['plain'] == 0
    assert 1e-4 < differences['bfloat16'] < 3e-2


def test_one_teacher_is_measured(run, capsys):
    assert run(model(teachers=dict(second=model()['teacher']))) == 2
    assert 'must have exactly one teacher' in capsys.readouterr().err
