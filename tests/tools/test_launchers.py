"""Distillations started by torchrun, mpi and slurm, on CPU with gloo, and by mim's launchers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_models import ROI_LOSSES, faster_rcnn, save_teacher
from torch import distributed

ROOT = Path(__file__).parents[2]
MIM = Path(sys.executable).with_name('mim')
needs_mim = pytest.mark.skipif(
    not MIM.is_file() or not list(distributions(name='mmkd')),
    reason='mim or mmkd is not installed',
)


@pytest.fixture
def distillation(config, tmp_path) -> Path:
    """The file of a distillation of two iterations."""
    cfg = Config.fromfile(config)
    checkpoint = save_teacher(tmp_path / 'teacher.pth', faster_rcnn(channels=24))
    teacher = dict(config=dict(model=faster_rcnn(channels=24)), checkpoint=str(checkpoint))
    cfg.model = dict(
        type='Distiller', student=faster_rcnn(), teacher=teacher, losses=dict(ROI_LOSSES)
    )
    cfg.custom_imports = dict(imports=['mmkd'])
    cfg.log_level = 'INFO'
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        cfg.pop(key)
    path = tmp_path / 'distil.py'
    cfg.dump(str(path))
    return path


def log_of(work_dir: Path) -> str:
    return next(work_dir.glob('*/*.log')).read_text()


def environment(**more: str) -> dict[str, str]:
    return dict(os.environ, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES='-1', **more)


@needs_mim
def test_mim_trains_with_two_processes(distillation, tmp_path):
    done = subprocess.run(
        [MIM, 'train', 'mmkd', distillation, '--launcher', 'pytorch', '--gpus', '2'],
        cwd=tmp_path,
        env=environment(OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    work_dir = tmp_path / 'work_dirs/distil'
    assert 'GPU number: 2' in log_of(work_dir)  # mmengine's words for the number of processes
    assert 'loss_kd_cls' in log_of(work_dir)
    assert (work_dir / 'iter_2.pth').is_file()


@needs_mim
def test_mim_hands_slurm_what_the_tool_reads(distillation, tmp_path):
    """Slurm's own program is stood in for by one that notes what it is asked to run."""
    srun = tmp_path / 'bin/srun'
    srun.parent.mkdir()
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > asked\n')
    srun.chmod(0o755)
    # onedl-mim 0.5.1 does not read its option's absence right with click 8.3.
    options = ('--gpus', '16', '--gpus-per-node', '8', '--partition', 'p', '--srun-args', '')
    subprocess.run(
        [MIM, 'train', 'mmkd', distillation, '--launcher', 'slurm', *options],
        cwd=tmp_path,
        env=environment(PATH=f'{srun.parent}{os.pathsep}{os.environ["PATH"]}'),
        check=True,
        capture_output=True,
        timeout=100,
    )
    asked = (tmp_path / 'asked').read_text().split()
    assert {'--ntasks=16', '--ntasks-per-node=8', '--gres=gpu:8'} <= set(asked)
    assert asked[-4].endswith('tools/train.py')
    assert asked[-3:] == [str(distillation), '--launcher', 'slurm']


# As mpirun and srun set it for a single process. The name of slurm's first machine is asked of scontrol.
STARTED_BY = dict(
    mpi=dict(
        OMPI_COMM_WORLD_RANK='0',
        OMPI_COMM_WORLD_SIZE='1',
        OMPI_COMM_WORLD_LOCAL_RANK='0',
        MASTER_ADDR='127.0.0.1',
    ),
    slurm=dict(SLURM_PROCID='0', SLURM_NTASKS='1', SLURM_LOCALID='0', SLURM_NODELIST='localhost'),
)
WRITTEN = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


@pytest.fixture
def started_by(monkeypatch, tmp_path):
    """Sets a launcher's variables, and takes the process group away afterwards."""

    def start(launcher: str, **more: str) -> None:
        for name, value in {**STARTED_BY[launcher], **more}.items():
            monkeypatch.setenv(name, value)
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            monkeypatch.setenv('MASTER_PORT', str(free.getsockname()[1]))
        scontrol = tmp_path / 'bin/scontrol'
        scontrol.parent.mkdir()
        scontrol.write_text('#!/bin/sh\necho "$3"\n')
        scontrol.chmod(0o755)
        monkeypatch.setenv('PATH', f'{scontrol.parent}{os.pathsep}{os.environ["PATH"]}')

    for name in WRITTEN:
        monkeypatch.setenv(name, '')  # restored afterwards, whatever the tool does to it
        monkeypatch.delenv(name)
    yield start
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason='with CUDA, mmengine makes the group')
@pytest.mark.parametrize('launcher', STARTED_BY)
def test_trains_as_the_launcher_says(tool, distillation, tmp_path, started_by, launcher):
    started_by(launcher)
    assert tool('train', distillation, '--launcher', launcher, '--work-dir', 'here') == 0
    log = log_of(tmp_path / 'here')
    assert f'Distributed launcher: {launcher}' in log
    assert 'Distributed training: True' in log
    assert distributed.get_backend() == 'gloo'
    assert (tmp_path / 'here/iter_2.pth').is_file()


@pytest.mark.parametrize('launcher', STARTED_BY)
def test_ranks_reach_the_variables_that_torch_reads(monkeypatch, started_by, launcher):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    from _cli import _read_launcher

    rank, world, local = list(STARTED_BY[launcher])[:3]
    started_by(launcher, **{rank: '5', world: '8', local: '1'})
    _read_launcher(launcher)
    names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
    assert [os.environ[name] for name in names] == ['5', '8', '1']
    assert os.environ['MASTER_ADDR'] in ('127.0.0.1', 'localhost')


@pytest.mark.parametrize('launcher', ['pytorch', 'mpi', 'slurm'])
def test_a_process_that_nobody_launched_is_told_how(tool, config, capsys, monkeypatch, launcher):
    for name in (*WRITTEN, *STARTED_BY['mpi'], *STARTED_BY['slurm']):
        monkeypatch.delenv(name, raising=False)
    assert tool('train', config, '--launcher', launcher) == 2
    message = capsys.readouterr().err
    command = dict(pytorch='torchrun', mpi='mpirun', slurm='srun')[launcher]
    assert f'--launcher {launcher}: the environment lacks' in message
    assert f'`{command} ' in message
