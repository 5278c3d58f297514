"""benchmarks/guard_cost.py, on a tiny detector."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

from tiny_models import faster_rcnn
from tiny_training import training_config

SCRIPT = Path(__file__).parents[2] / 'benchmarks' / 'guard_cost.py'


def test_the_checks_are_part_of_the_step(monkeypatch, tmp_path, capsys):
    cfg = training_config(faster_rcnn(), tmp_path, tmp_path / 'unused')
    cfg.dump(str(tmp_path / 'tiny.py'))
    given = (tmp_path / 'tiny.py', '--device', 'cpu', '--size', 64, '--iterations', 2)
    monkeypatch.setattr(sys, 'argv', [str(SCRIPT), *map(str, given)])
    runpy.run_path(str(SCRIPT), run_name='__main__')
    found = re.search(r'checks take ([\d.]+) % \(at most ([\d.]+) %\)', capsys.readouterr().out)
    assert 0 < float(found[1]) <= float(found[2]) < 100
