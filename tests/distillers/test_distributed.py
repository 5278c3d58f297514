"""Two processes, on CPU with gloo."""

from __future__ import annotations

from pathlib import Path

import torch
from ddp_worker import work, work_with_queries
from tiny_models import faster_rcnn, save_teacher
from tiny_transformers import transformer
from torch import multiprocessing


def test_connectors_are_synchronised_and_an_ended_loss_does_not_stall(tmp_path: Path):
    checkpoint = save_teacher(tmp_path / 'teacher.pth', faster_rcnn(channels=24))
    multiprocessing.spawn(work, args=(2, str(tmp_path), str(checkpoint)), nprocs=2)
    one, two = (torch.load(tmp_path / f'rank{rank}.pth') for rank in range(2))
    assert not any('teacher' in name for name in one['names'])
    assert {name for name in one['names'] if 'connectors' in name} == {
        'module.connectors.loss_kd_neck.convs.0.weight',
        'module.connectors.loss_kd_neck.convs.0.bias',
    }
    for name, value in one['after'].items():
        assert torch.equal(one['before'][name], two['before'][name]), name
        assert torch.equal(value, two['after'][name]), name
    name = 'connectors.loss_kd_neck.convs.0.weight'
    assert not torch.equal(one['before'][name], one['after'][name])
    assert one['loss'] != two['loss']  # each had data of its own
    assert all(one['neck'][:2]) and one['neck'][2:] == [0.0, 0.0]


def test_a_decoder_that_runs_twice_a_step_is_synchronised(tmp_path: Path):
    """Own and shared queries, without a flag for unused parameters."""
    checkpoint = save_teacher(tmp_path / 'teacher.pth', transformer('DETR'))
    multiprocessing.spawn(work_with_queries, args=(2, str(tmp_path), str(checkpoint)), nprocs=2)
    one, two = (torch.load(tmp_path / f'rank{rank}.pth') for rank in range(2))
    for name, value in one['after'].items():
        assert torch.equal(value, two['after'][name]), name
    assert all(value > 0 for step in one['losses'] for value in step.values())
    assert one['losses'] != two['losses']
