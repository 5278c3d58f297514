"""benchmarks/matching.py, on few queries."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / 'benchmarks' / 'matching.py'
TINY = ('--batch-size', 2, '--layers', 3, '--classes', 4, '--iterations', 2, '--warmup', 0)


@pytest.fixture
def run(monkeypatch):
    """``run(*arguments)`` runs the script; returns its exit code and what it defined."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(SCRIPT), *map(str, ('--device', 'cpu', *arguments))])
        try:
            return 0, runpy.run_path(str(SCRIPT), run_name='__main__')
        except SystemExit as stop:
            return int(stop.code or 0), {}

    return run


def test_each_number_of_queries_is_a_row(run, tmp_path, capsys):
    path = tmp_path / 'numbers.json'
    code, script = run(*TINY, '--queries', 5, 9, '--json', path)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split('|')[1:-1] for line in lines if line.startswith('|')]
    assert code == 0 and len({len(row) for row in rows}) == 1
    assert [row[0].strip() for row in rows] == ['queries', '---:', '5', '9']
    numbers = json.loads(path.read_text())
    assert [each['queries'] for each in numbers['results']] == [5, 9]
    for each in numbers['results']:
        for way in ('together', 'one_by_one'):
            assert set(each[way]) == {*script['PHASES'], 'all'}
            for low, middle, high in each[way].values():
                assert 0 < low <= middle <= high


def test_both_ways_pair_as_a_training_step_does(run, monkeypatch):
    _, script = run(*TINY, '--queries', 7)
    monkeypatch.setattr(sys, 'argv', [str(SCRIPT), *map(str, TINY)])
    alignment, step = script['problem'](script['parse_args'](), 7, torch.device('cpu'))
    ours, theirs = alignment.pairing(step)
    assert torch.equal(theirs, torch.arange(7).expand(3, 2, 7))
    assert not torch.equal(ours, theirs)
    for way in ('together', 'one_by_one'):
        assert torch.equal(script[way](alignment, step, lambda _, function: function()), ours)


def test_what_cannot_be_measured_is_refused(run, capsys):
    assert run(*TINY, '--queries', 0)[0] == 2
    assert '--queries must be at least 1' in capsys.readouterr().err
