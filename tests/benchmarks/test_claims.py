"""Numbers in prose, and the pages that are shipped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from claims import MARK, fill, pages, statements, verdict
from results import Results
from study import Study, find_study

from mmkd.errors import ConfigError

ROOT = Path(__file__).parents[2]
LINES = ROOT / 'benchmarks' / 'results.jsonl'
# What only finished runs may say: a score, a difference of scores, a chance.
CLAIM = re.compile(
    r'\d ?(mAP|points?\b)|\bmAP (of )?\d|\d ± \d|(?<![\w.])[+-]\d+\.\d|\d ?% of the gap|\bp (below|<) 0|'
    r'significant|\bout-?performs?\b|learns? as much',
    re.IGNORECASE,
)


def load(name):
    return Study(find_study(name), Path('work_dirs/benchmarks')), Results(LINES, name)


def prose(text):
    """A page without code, tables and what is made from runs."""
    text = re.sub(r'```.*?```', '', MARK.sub('', text), flags=re.DOTALL)
    text = re.sub(r'<!-- table of (\w+) -->.*?<!-- end of \1 -->', '', text, flags=re.DOTALL)
    return '\n'.join(line for line in text.splitlines() if not line.startswith('|'))


@pytest.mark.parametrize('page', pages(ROOT), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_claim_what_the_runs_carry(page, monkeypatch):
    """Marks are filled in as the runs say, and outside them nothing is claimed."""
    monkeypatch.chdir(ROOT)
    text = page.read_text()
    assert fill(text, load) == text
    found = [line for line in prose(text).splitlines() if CLAIM.search(line)]
    # A single number of a file that is known by its checksum, measured once.
    given = [line for line in found if 'mAP 24.1 there' not in line]
    assert given == []


@pytest.mark.parametrize(
    'claim',
    [
        'the student has 20.4 mAP now',
        'it gains 3.2 points',
        'closes 66 % of the gap',
        'a gain of +4.2',
        '17.2 ± 2.9 by itself',
        'all gains are significant',
    ],
)
def test_a_claim_that_is_written_by_hand_is_found(claim):
    assert CLAIM.search(prose(f'Text.\n\n{claim}, as it seems.'))


def test_a_mark_that_runs_do_not_carry_is_refused(monkeypatch):
    """Three runs of each carry means, and no gain."""
    monkeypatch.chdir(ROOT)
    assert (
        fill('<!--= cached maps runs -->9<!--/-->', load) == '<!--= cached maps runs -->3<!--/-->'
    )
    for what in ('maps gain', 'gap', 'verdict', 'maps share', 'nothing mAP'):
        with pytest.raises(ConfigError, match=r'do not support this.*needs 8 runs'):
            fill(f'<!--= cached {what} -->9<!--/-->', load)


def test_statements_are_those_of_the_table(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / 'docs' / 'recipes' / 'results.md').read_text()
    said = statements(*load('cached'))
    row = next(line for line in page.splitlines() if line.startswith('| proposals-cached'))
    assert f' {said["proposals-cached mAP"]} |' in row and said['teacher mAP'] == '31.1'


def test_the_verdict_names_all_recipes():
    gains = {'a': (2.0, 0.01), 'b': (2.0, 0.05), 'c': (-1.0, 0.001), 'd': (0.1, 0.9)}
    assert verdict(gains) == (
        'Significant gains (p < 0.05): `a`. Significant losses (p < 0.05): `c`. '
        'Not significant: `b`, `d`.'
    )
    assert verdict({'a': (2.0, 0.01)}) == 'Significant gains (p < 0.05): `a`.'
