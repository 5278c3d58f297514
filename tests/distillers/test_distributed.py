"""Two processes, on CPU with gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ddp_worker import (
    CACHED,
    cached_images,
    work,
    work_on_a_share,
    work_on_a_share_with_a_cache,
    work_with_a_cache,
    work_with_a_dense_head,
    work_with_measured_weights,
    work_with_queries,
)
from tiny_caches import both
from tiny_dense import single_stage
from tiny_models import ROI_LOSSES, batch, faster_rcnn, feature_loss, save_teacher
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


def test_two_processes_read_one_cache(tmp_path: Path):
    """Each maps its files, and has images of its own."""
    losses = dict(ROI_LOSSES, loss_kd_neck=feature_loss(16, 24))
    options = dict(proposals='teacher', num_proposals=16)
    both(tmp_path, faster_rcnn(), faster_rcnn(channels=24), losses, batch(), **options)
    (tmp_path / 'teacher.pth').unlink()
    arguments = (2, str(tmp_path), str(tmp_path / 'cache'))
    multiprocessing.spawn(work_with_a_cache, args=arguments, nprocs=2)
    one, two = (torch.load(tmp_path / f'rank{rank}.pth') for rank in range(2))
    for name, value in one['after'].items():
        assert torch.equal(value, two['after'][name]), name
    assert all(value > 0 for step in one['losses'] + two['losses'] for value in step.values())
    assert one['losses'] != two['losses']


def test_measured_weights_are_those_of_all_processes(tmp_path: Path):
    checkpoint = save_teacher(tmp_path / 'teacher.pth', faster_rcnn(channels=24))
    arguments = (2, str(tmp_path), str(checkpoint))
    multiprocessing.spawn(work_with_measured_weights, args=arguments, nprocs=2)
    one, two = (torch.load(tmp_path / f'rank{rank}.pth') for rank in range(2))
    assert one['weights'] == two['weights'] and len(one['weights']) == 3
    assert all(state['measured'] == 2 for state in one['weights'].values())
    for name, value in one['after'].items():
        assert torch.equal(value, two['after'][name]), name
    assert one['losses'] != two['losses']  # each had data of its own


CASES = {
    'own and shared queries': (work_with_queries, lambda: transformer('DETR')),
    'a crossed head and an average': (work_with_a_dense_head, lambda: single_stage('GFL')),
}


@pytest.mark.parametrize(('work_with', 'teacher'), CASES.values(), ids=CASES)
def test_two_processes_agree(tmp_path: Path, work_with, teacher):
    """Without a flag for unused parameters."""
    checkpoint = save_teacher(tmp_path / 'teacher.pth', teacher())
    multiprocessing.spawn(work_with, args=(2, str(tmp_path), str(checkpoint)), nprocs=2)
    one, two = (torch.load(tmp_path / f'rank{rank}.pth') for rank in range(2))
    for name, value in one['after'].items():
        assert torch.equal(value, two['after'][name]), name
    # The average of the student is the student at first.
    first, *later = one['losses']
    assert all(value > 0 for name, value in first.items() if 'average' not in name)
    assert all(value > 0 for step in later for value in step.values())
    assert one['losses'] != two['losses']


def test_two_processes_learn_what_one_learns_from_the_same_batch(tmp_path: Path):
    """Where rows count by the teacher's confidence or the labels, of which the second rank has fewer, too."""
    checkpoint = save_teacher(tmp_path / 'teacher.pth', single_stage('GFL'))
    work_on_a_share(0, 1, str(tmp_path), str(checkpoint))
    multiprocessing.spawn(work_on_a_share, args=(2, str(tmp_path), str(checkpoint)), nprocs=2)
    alone, one, two = (
        torch.load(tmp_path / f'{name}.pth') for name in ('1_rank0', '2_rank0', '2_rank1')
    )
    for step, (whole, *halves) in enumerate(
        zip(alone['losses'], one['losses'], two['losses'], strict=True)
    ):
        for name, value in whole.items():
            mean = sum(half[name] for half in halves) / 2
            assert mean == pytest.approx(value, rel=1e-4), (step, name)
            assert name == 'loss_kd_neck' or halves[0][name] != halves[1][name]
    for name, value in alone['after'].items():
        torch.testing.assert_close(one['after'][name], value, rtol=1e-3, atol=1e-5, msg=name)
        assert torch.equal(one['after'][name], two['after'][name]), name


@pytest.mark.parametrize('kind', CACHED)
def test_two_processes_learn_what_one_learns_from_a_cache(tmp_path: Path, kind):
    """Where the cache holds fewer rows for the images of the second rank."""
    model, losses = CACHED[kind]
    both(tmp_path, model(), model(), losses, cached_images(), num_priors=16)
    work_on_a_share_with_a_cache(0, 1, str(tmp_path), kind)
    arguments = (2, str(tmp_path), kind)
    multiprocessing.spawn(work_on_a_share_with_a_cache, args=arguments, nprocs=2)
    alone, one, two = (
        torch.load(tmp_path / f'{name}.pth') for name in ('1_rank0', '2_rank0', '2_rank1')
    )
    for name, value in alone['losses'].items():
        halves = [each['losses'][name] for each in (one, two)]
        assert sum(halves) / 2 == pytest.approx(value, rel=1e-4), name
        assert 'box' not in name or min(halves) < 0.8 * max(halves), name
    assert alone['gradients'].keys() == one['gradients'].keys() == two['gradients'].keys()
    for name, value in alone['gradients'].items():
        mean = (one['gradients'][name] + two['gradients'][name]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-3, atol=1e-6, msg=name)
