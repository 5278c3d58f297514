"""What docs/concepts/architecture.md promises of the code: which way imports go, and how few files a step takes."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import ROI_LOSSES, batch, pair_of_detectors

PACKAGE = Path(__file__).parents[1] / 'mmkd'
# From what everything may import to what imports everything; those of one line do not import each other.
LAYERS = (
    ('errors', 'version', 'types', 'file_kind'),
    ('compat', 'nested', 'random_state', 'method_override', 'checkpoints'),
    ('building',),
    ('recorder', 'converters', 'models', 'f1_metric', 'visualization'),
    ('families', 'losses', 'connectors'),
    ('alignments',),
    ('cache', 'sharding'),
    ('teachers',),
    ('datasets', 'distillers'),
    ('preflight',),
    ('hooks',),
    ('analysis',),
    ('deploy',),
    ('', '__main__'),
)


def imports(file: Path) -> set[str]:
    """The top-level modules of mmkd that a file imports, wherever in it."""
    parts = file.relative_to(PACKAGE.parent).with_suffix('').parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[: len(parts) - node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {'.'.join((*base, name)) for name in names}
        elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('mmkd'):
            found.add(node.module)
    return {name.split('.')[1] if '.' in name else '' for name in found}


def test_imports_go_downward_only():
    """Which excludes circles, and the training step from importing what measures it."""
    rank = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    upward = []
    for file in sorted(PACKAGE.rglob('*.py')):
        parts = file.relative_to(PACKAGE).with_suffix('').parts
        own = '' if parts == ('__init__',) else parts[0]
        upward += [
            f'{file.relative_to(PACKAGE)} imports {name or "mmkd"}'
            for name in imports(file) - {own}
            if rank[name] >= rank[own]
        ]
    assert not upward


def files_of(function: Callable) -> set[str]:
    """The files of mmkd whose functions run in a call."""
    seen = set()

    def watch(frame, event, _):
        if event == 'call':
            seen.add(frame.f_code.co_filename)

    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(None)
    return {str(Path(name).relative_to(PACKAGE)) for name in seen if name.startswith(f'{PACKAGE}/')}


@pytest.mark.parametrize(
    ('losses', 'limit'),
    [
        (dict(loss_kd=dict(type='CWD', student='neck')), 13),
        (dict(loss_kd_cls=ROI_LOSSES['loss_kd_cls']), 13),
    ],
    ids=['features', 'RoI classes'],
)
def test_a_step_takes_few_files(tmp_path, losses, limit):
    """All that a reader must open on the way from ``Distiller.loss`` to a loss value."""
    distiller = pair_of_detectors(tmp_path, losses)
    distiller.train().prepare()
    data = distiller.data_preprocessor(batch(), True)
    distiller.loss(**data)
    found = files_of(lambda: distiller.loss(**data))
    assert len(found) <= limit, sorted(found)


def test_the_page_names_files_that_exist():
    page = PACKAGE.parent / 'docs/concepts/architecture.md'
    lines = page.read_text(encoding='utf-8').splitlines()
    assert len(lines) <= 120
    text = re.sub(r'```.*?```', '', '\n'.join(lines), flags=re.S)
    named = set(re.findall(r'`([\w/]+(?:\.py|/))`', text))
    assert len(named) > 20
    root = PACKAGE.parent
    missing = [
        n for n in named if not any((base / n).exists() for base in (root, PACKAGE, page.parent))
    ]
    assert not missing
