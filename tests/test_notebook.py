"""The notebook of the docs runs as it is committed, and shows what its text announces."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / 'docs/notebooks/demo.ipynb'


def test_no_output_is_committed():
    cells = json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert code
    assert not [cell for cell in code if cell['outputs'] or cell['execution_count'] is not None]


@pytest.fixture(scope='module')
def executed(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The folder in which all cells were run, and the cells by their ids."""
    nbclient = pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    nbformat = pytest.importorskip('nbformat')
    folder = tmp_path_factory.mktemp('notebook')
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name='python3', resources={'metadata': {'path': str(folder)}}
    )
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    client.execute(env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'})
    return folder, {cell.id: cell for cell in notebook.cells}


def text_of(cell: Any) -> str:
    return ''.join(output.text for output in cell.outputs if output.output_type == 'stream')


def shown(cell: Any, kind: str) -> list[str]:
    """What a cell displays of a MIME type."""
    return [output.data[kind] for output in cell.outputs if kind in output.get('data', {})]


def test_it_shows_the_table_and_the_figures_of_its_run(executed):
    folder, cells = executed
    assert 'Train the distilled student: done' in text_of(cells['run'])
    (table,) = shown(cells['table'], 'text/markdown')
    assert table == (folder / 'work_dirs/demo-quick/table.md').read_text()
    rows = [line.split('|')[1].strip() for line in table.splitlines() if line.startswith('| ')]
    assert rows[-3:] == ['teacher', 'student', 'distilled student']
    assert len(shown(cells['figures'], 'image/png')) == 2


def test_it_suggests_losses_that_are_python(executed):
    suggested = text_of(executed[1]['inspect'])
    declared: dict[str, Any] = {}
    exec(suggested[suggested.index('losses = dict(') :], declared)
    assert {'loss_kd_cls', 'loss_kd_neck'} <= declared['losses'].keys()


def test_it_predicts_with_the_plain_students_config(executed):
    folder, cells = executed
    assert 'predictions on 1 images' in text_of(cells['predict'])
    predictions = json.loads(
        (folder / 'work_dirs/demo-quick/predictions/predictions.json').read_text()
    )
    assert {each['file_name'] for each in predictions} <= {
        'work_dirs/demo-quick/data/val/000000.jpg'
    }
    assert len(shown(cells['predict'], 'image/jpeg')) == 1
