"""The workflow for GitHub Actions calls what exists, and leaves out nothing that is supported."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text(encoding='utf-8'))
MAKEFILE = (ROOT / 'Makefile').read_text(encoding='utf-8')
PYPROJECT = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
STEPS = [step for job in WORKFLOW['jobs'].values() for step in job['steps']]
CALL = re.compile(r'\bmake ([\w-]+)')


def test_it_calls_targets_that_exist_and_those_of_the_local_script():
    called = {target for step in STEPS for target in CALL.findall(step.get('run', ''))}
    assert called <= set(re.findall(r'^([\w-]+):', MAKEFILE, re.M))
    assert called == set(CALL.findall((ROOT / '.ci/run').read_text(encoding='utf-8')))


def test_every_supported_python_and_both_stacks_are_tested():
    matrix = WORKFLOW['jobs']['test']['strategy']['matrix']
    runs = set(product(matrix['stack'], matrix['python']))
    runs |= {(each['stack'], each['python']) for each in matrix['include']}
    pythons = re.findall(r'"Programming Language :: Python :: (\d+\.\d+)"', PYPROJECT)
    assert {python for stack, python in runs if stack == 'onedl'} == set(pythons)
    assert {stack for stack, _ in runs} == set(re.findall(r'\$\(STACK\),(\w+)\)', MAKEFILE))
    for stack, _ in runs:
        assert f'\n{stack} = [\n' in PYPROJECT  # the extra that the set-up installs
    (setup, lint, test) = (step['run'] for step in WORKFLOW['jobs']['test']['steps'][-3:])
    assert setup == 'make setup STACK=${{ matrix.stack }} PYTHON=python${{ matrix.python }}'
    assert all(f'make {name} STACK=' in run for name, run in (('lint', lint), ('test', test)))


def test_only_actions_of_github_run_and_pip_is_cached():
    used = [step['uses'] for step in STEPS if 'uses' in step]
    assert all(re.fullmatch(r'actions/[\w-]+@v\d+', name) for name in used), used
    pythons = [step['with'] for step in STEPS if step.get('uses', '').startswith('actions/setup-')]
    assert len(pythons) == len(WORKFLOW['jobs'])
    for options in pythons:
        assert options['cache'] == 'pip' and (ROOT / options['cache-dependency-path']).is_file()


def test_a_newer_run_of_a_pull_request_ends_the_older_one():
    assert '${{ github.ref }}' in WORKFLOW['concurrency']['group']
    assert 'pull_request' in WORKFLOW['concurrency']['cancel-in-progress']
    assert WORKFLOW['permissions'] == {'contents': 'read'}
