"""mmengine's strategies for large models, two processes on CPU with gloo."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from strategy_worker import CASES, ITERS, work
from tiny_models import save_teacher
from tiny_training import write_coco
from torch import multiprocessing

from mmkd.checkpoints import load_weights, read_checkpoint


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directories ``ddp/<case>`` and ``fsdp/<case>``, and what the processes saw."""
    folder = tmp_path_factory.mktemp('strategies')
    write_coco(folder / 'data')
    for case, (model, _) in CASES.items():
        save_teacher(folder / f'{case}.pth', model())
    multiprocessing.spawn(work, args=(2, str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize('case', CASES)
def test_fsdp_trains_and_resumes_as_ddp_does(folder, case):
    """Clipped by the norm of all gradients, connectors and momentum brought back."""
    for iters in ITERS[case]:
        ddp, fsdp = (
            read_checkpoint(str(folder / name / case / f'iter_{iters}.pth'), name)
            for name in ('ddp', 'fsdp')
        )
        weights = [
            each['state_dict'] | each.get('distillation', {}).get('connectors', {})
            for each in (ddp, fsdp)
        ]
        assert weights[0].keys() == weights[1].keys()
        for name, value in weights[0].items():
            torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize('case', CASES)
def test_checkpoints_of_fsdp_are_the_plain_students(folder, case):
    checkpoint = read_checkpoint(str(folder / 'fsdp' / case / 'iter_2.pth'), 'it')
    load_weights(MODELS.build(CASES[case][0]()), checkpoint, 'it')
    connectors = checkpoint.get('distillation', {}).get('connectors', {})
    assert bool(connectors) == (case == 'two-stage')


@pytest.mark.parametrize('case', CASES)
def test_fsdp_shards_the_student_and_leaves_the_teacher_alone(folder, case):
    one, two = (torch.load(folder / f'rank{rank}.pth') for rank in range(2))
    whole = one[f'ddp {case}']['local']
    parts = [each[f'fsdp {case}']['local'] for each in (one, two)]
    assert whole <= sum(parts) < 1.01 * whole  # but for padding
    assert max(parts) < 0.6 * whole
    names = one[f'fsdp {case}']['names']
    assert not any('teacher' in name for name in names)
    assert any(re.search(r'backbone\._fsdp_wrapped_module\.', name) for name in names)
    assert one[f'fsdp {case}']['teacher'] == one[f'ddp {case}']['teacher']
