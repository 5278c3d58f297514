"""``python -m mmkd``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import faster_rcnn
from tiny_training import training_config, write_coco

from mmkd.__main__ import main, tools

REPOSITORY = Path(__file__).parents[1]


def test_without_a_tool_it_lists_them(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert 'Train a detector' in listed
    assert all(f'  {name} ' in listed for name in tools())
    assert '_cli' not in listed


def test_unknown_tool_is_refused(capsys):
    assert main(['trian']) == 2
    message = capsys.readouterr().err
    assert "'trian'" in message
    assert 'train' in message


@pytest.mark.parametrize('name', sorted(tools()))
def test_every_tool_has_help(name):
    """Also shows that a tool's help, which mim asks for before it trains, loads no torch."""
    script = tools()[name]
    code = (
        'import runpy, sys\n'
        f'sys.path[0], sys.argv = {str(script.parent)!r}, [{str(script)!r}, "-h"]\n'
        'try: runpy.run_path(sys.argv[0], run_name="__main__")\n'
        'except SystemExit as stop: assert not stop.code\n'
        'assert "torch" not in sys.modules'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert 'usage:' in run.stdout


def test_a_tool_starts_without_torch():
    command = [sys.executable, '-X', 'importtime', '-m', 'mmkd', 'train', '-h']
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 'usage:' in run.stdout
    imported = {line.rpartition('|')[2].strip() for line in run.stderr.splitlines()}
    assert 'mmkd' in imported
    assert 'torch' not in imported


def test_a_package_of_others_that_is_run_with_m_may_import_mmkd(tmp_path):
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own/__init__.py').write_text('import mmkd\n')
    code = "from mmdet.registry import MODELS\nassert 'Distiller' in MODELS.module_dict\n"
    (tmp_path / 'own/train.py').write_text(code)
    subprocess.run([sys.executable, '-m', 'own.train', 'mmkd'], cwd=tmp_path, check=True)


def test_a_tool_prints_its_own_words_alone(tmp_path):
    """No notes of optional packages, and the config stands in the log file."""
    data = write_coco(tmp_path / 'data', images=2)
    cfg = training_config(faster_rcnn(), data, tmp_path / 'work', iters=1, log_level='INFO')
    cfg.dump(str(tmp_path / 'tiny.py'))
    command = [sys.executable, '-m', 'mmkd', 'check', str(tmp_path / 'tiny.py')]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stderr == ''
    assert run.stdout.startswith('data files          passed\n')
    command[3:] = ['train', str(tmp_path / 'tiny.py'), '--gpus', '0']
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    (log,) = tmp_path.glob('work/*/*.log')
    assert 'Config:\n' in log.read_text()
    assert 'Config:\n' not in run.stdout + run.stderr
    assert 'OneDL' not in run.stdout


def test_trains_on_the_cpu(tmp_path):
    data = write_coco(tmp_path / 'data', images=2)
    cfg = training_config(faster_rcnn(), data, tmp_path / 'work', iters=1)
    cfg.dump(str(tmp_path / 'tiny.py'))
    command = [sys.executable, '-m', 'mmkd', 'train', str(tmp_path / 'tiny.py'), '--gpus', '0']
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
    assert (tmp_path / 'work/iter_1.pth').is_file()
