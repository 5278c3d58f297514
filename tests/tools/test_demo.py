"""The demo from data generation to figures, and a second run of it."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'tools' / 'demo.py'
MODELS = ['teacher', 'student', 'distilled']


def command(work_dir, *options):
    options = ('--quick', '--device', 'cpu', '--work-dir', str(work_dir), *options)
    return [sys.executable, str(SCRIPT), *options]


def environment():
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    return {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}


def run(work_dir, *options):
    return subprocess.run(
        command(work_dir, *options), env=environment(), capture_output=True, text=True, timeout=500
    )


@pytest.fixture(scope='module')
def demo():
    spec = importlib.util.spec_from_file_location('mmkd_tools_demo', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A work folder with a finished quick demo that was interrupted once, and both outputs."""
    work_dir = tmp_path_factory.mktemp('demo') / 'work'
    process = subprocess.Popen(
        command(work_dir),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell starts background jobs deaf to Ctrl-C; this one listens wherever the test runs.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = ''
    for line in process.stdout:
        first += line
        if line.startswith('Train the distilled student ...'):
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130, first
    second = run(work_dir)
    assert second.returncode == 0, second.stdout + second.stderr
    return work_dir, first, second


def test_interrupt_prints_how_to_continue(finished):
    work_dir, first, second = finished
    assert f'--quick --work-dir {work_dir} --device cpu' in first
    assert 'Traceback' not in first
    assert 'Generate 24 images: already done' in second.stdout
    assert 'Train the teacher: already trained' in second.stdout
    assert 'Train the student: done' in second.stdout


def test_output_is_the_table_and_nothing_of_the_frameworks(finished):
    work_dir, _, second = finished
    assert (work_dir / 'table.md').read_text().strip() in second.stdout
    assert 'mmengine' not in second.stdout
    assert 'Warning' not in second.stdout + second.stderr
    assert (work_dir / 'console.log').stat().st_size > 0


def test_table_agrees_with_the_metrics(finished):
    work_dir = finished[0]
    metrics = json.loads((work_dir / 'metrics.json').read_text())
    lines = (work_dir / 'table.md').read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[:5]]
    assert rows[0][1:] == [
        'parameters',
        'GFLOPs',
        'mAP',
        'AP50',
        'F1',
        'ms',
        'ms in ONNX Runtime',
        'gap closed',
    ]
    assert [row[0] for row in rows[2:]] == ['teacher', 'student', 'distilled student']
    for row, name in zip(rows[2:], MODELS, strict=True):
        values = metrics['models'][name]
        assert float(row[1].split()[0]) == pytest.approx(values['parameters'] / 1e6, abs=0.006)
        assert float(row[2]) == pytest.approx(values['flops'] / 1e9, abs=0.0006)
        for cell, key in zip(row[3:6], ('bbox_mAP', 'bbox_mAP_50', 'bbox_F1'), strict=True):
            assert float(cell) == pytest.approx(100 * values[f'coco/{key}'], abs=0.06)
        assert float(row[6]) == pytest.approx(values['ms_per_image'], abs=0.06)
    student, distilled = (metrics['models'][name]['parameters'] for name in MODELS[1:])
    assert student == distilled < metrics['models']['teacher']['parameters']


def test_figures_exist(finished):
    for name in ('comparison.png', 'curves.png'):
        with Image.open(finished[0] / name) as figure:
            assert figure.format == 'PNG'
            assert figure.width > 800


def test_checkpoints_of_both_students_are_alike(finished):
    import torch

    states = []
    for name in MODELS[1:]:
        folder = finished[0] / name
        checkpoint = json.loads((folder / 'stage.json').read_text())['checkpoint']
        content = torch.load(folder / checkpoint, map_location='cpu', weights_only=False)
        states.append(content['state_dict'])
    assert {k: v.shape for k, v in states[0].items()} == {k: v.shape for k, v in states[1].items()}
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_finished_demo_repeats_nothing_but_a_lost_stage(finished, tmp_path):
    work_dir = finished[0]
    checkpoint = next((work_dir / 'distilled').glob('epoch_2.pth'))
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])  # as if the disk had been full
    before = json.loads((work_dir / 'metrics.json').read_text())
    again = run(work_dir)
    assert again.returncode == 0, again.stdout + again.stderr
    assert 'Train the teacher: already trained' in again.stdout
    assert 'Train the student: already trained' in again.stdout
    assert 'Train the distilled student: done' in again.stdout
    after = json.loads((work_dir / 'metrics.json').read_text())
    assert before['models']['student'].keys() == after['models']['student'].keys()
    assert before['checkpoints']['teacher'] == after['checkpoints']['teacher']


def test_two_demos_do_not_share_a_folder(finished):
    fcntl = pytest.importorskip('fcntl')
    with open(finished[0] / 'console.log', 'a') as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        second = run(finished[0])
    assert second.returncode == 2
    assert second.stderr.splitlines()[-1].startswith(
        'mmkd: error: --work-dir: another demo is running'
    )


def test_impossible_seed_is_one_line(tmp_path):
    refused = run(tmp_path, '--seed', '-1')
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert '--seed: must be at least 0, got -1' in refused.stderr


def test_fresh_removes_only_its_own(demo, tmp_path):
    (tmp_path / 'teacher').mkdir()
    (tmp_path / 'teacher' / 'stage.json').write_text('{}')
    (tmp_path / 'student').mkdir()  # of something else: it has no stage.json
    (tmp_path / 'notes.txt').write_text('mine')
    (tmp_path / 'table.md').write_text('')
    demo._forget(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['notes.txt', 'student']


def test_description_tells_a_loss_as_plainly_as_a_gain(demo):
    values = {'coco/bbox_mAP': 0.0, 'parameters': 1, 'flops': 1, 'ms_per_image': 1.0}
    metrics = {
        'models': {
            name: {**values, 'coco/bbox_mAP': value}
            for name, value in zip(MODELS, (0.5, 0.3, 0.28), strict=True)
        },
        'gap_closed': -0.1,
        'input_size': (128, 160),
        'images': 9,
        'machine': 'this one',
        'seed': 0,
    }
    assert re.match(r'.*changed the student by -2\.0 points of mAP: -10 %', demo.describe(metrics))
    metrics['gap_closed'] = None
    assert 'no gap to close' in demo.describe(metrics)


def test_unfinished_checkpoint_is_passed_over(demo, tmp_path):
    import torch

    assert demo._latest_checkpoint(tmp_path) is None
    for epoch in (2, 9, 10):
        torch.save({'epoch': epoch}, tmp_path / f'epoch_{epoch}.pth')
    assert demo._latest_checkpoint(tmp_path).name == 'epoch_10.pth'
    whole = (tmp_path / 'epoch_10.pth').read_bytes()
    (tmp_path / 'epoch_10.pth').write_bytes(whole[: len(whole) // 2])
    assert demo._latest_checkpoint(tmp_path).name == 'epoch_9.pth'
