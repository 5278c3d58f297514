"""The Dockerfile names what exists. Nothing here builds it."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = re.sub(r'\\\n\s*', '', (ROOT / 'Dockerfile').read_text(encoding='utf-8'))
LINES = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and line[0] not in '# ']
PYPROJECT = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')


def copied() -> set[str]:
    """What comes from the checkout."""
    arguments = [rest.split() for word, rest in LINES if word == 'COPY' and '--from=' not in rest]
    return {name.rstrip('/') for *names, _ in arguments for name in names}


def test_it_copies_what_exists_and_is_not_ignored():
    kept = {
        line[1:]
        for line in (ROOT / '.dockerignore').read_text().splitlines()
        if line.startswith('!')
    }
    for name in copied():
        assert (ROOT / name).exists(), name
        assert name.split('/')[0] in kept, name
    assert {name.split('/')[0] for name in copied()} == kept


def test_it_copies_what_an_installation_needs():
    """The same files as tests/test_packaging.py installs from."""
    packaging = (ROOT / 'tests/test_packaging.py').read_text(encoding='utf-8')
    needed = re.search(r'for name in \((.*?)\)', packaging)[1]
    needed += re.search(r"for name in \(('pyproject.*?)\)", packaging)[1]
    assert copied() == {*re.findall(r"'([^']+)'", needed), 'requirements/constraints.txt'}


def test_it_installs_extras_and_pins_that_are_declared():
    runs = ' '.join(rest for word, rest in LINES if word == 'RUN')
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', runs)
    declared = set(re.findall(r'^(\w+) = \[', PYPROJECT, re.M))
    assert set(extras.split(',')) == {'onedl', 'export'} <= declared
    pinned = (ROOT / 'requirements/constraints.txt').read_text()
    for name in ('torch', 'onedl-mmcv', 'ninja', 'setuptools'):
        assert name in runs.split() and f'\n{name}==' in pinned


def test_it_runs_the_tools_as_a_user_on_a_supported_python():
    stages = [index for index, (word, _) in enumerate(LINES) if word == 'FROM']
    assert len(stages) == 2
    for index in stages:
        version = re.match(r'python:(\d+\.\d+)-slim', LINES[index][1])[1]
        assert f'"Programming Language :: Python :: {version}"' in PYPROJECT
    last = dict(LINES[stages[1] :])
    assert last['USER'] not in ('root', '0')
    assert json.loads(last['ENTRYPOINT']) == ['python', '-m', 'mmkd']
    assert 'g++' not in last['RUN']  # the compiler stays behind
