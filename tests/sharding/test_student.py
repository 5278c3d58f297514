"""mmengine's strategies for large models, two processes on CPU with gloo."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner import FlexibleRunner
from strategy_worker import ARGUMENTS, CASES, ITERS, config, work
from tiny_dense import single_stage
from tiny_models import save_teacher
from tiny_training import write_coco
from torch import distributed, multiprocessing

from mmkd.checkpoints import load_weights, read_checkpoint
from mmkd.errors import ConfigError


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


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``alone(strategy, …)`` trains the two-stage case in a group of one process; returns its runner."""
    for name, value in dict(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1').items():
        monkeypatch.setenv(name, value)
    distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/meet', rank=0, world_size=1
    )
    write_coco(tmp_path / 'data')
    save_teacher(tmp_path / 'two-stage.pth', CASES['two-stage'][0]())

    def run(strategy: dict, **changes) -> FlexibleRunner:
        cfg = config('two-stage', str(tmp_path), 'alone', iters=2)
        cfg.merge_from_dict(changes)
        cfg.strategy = strategy
        runner = FlexibleRunner(**{key: cfg.get(key) for key in ARGUMENTS})
        runner.train()
        return runner

    yield run
    distributed.destroy_process_group()


def test_fsdp_that_would_write_pieces_is_refused(alone):
    wrapper = dict(type='MMFullyShardedDataParallel', device_id='cpu')
    with pytest.raises(ConfigError, match=r"StudentFSDPStrategy' or strategy\.state_dict_cfg"):
        alone(dict(type='FSDPStrategy', model_wrapper=wrapper))


def test_an_average_of_a_sharded_student_is_refused(alone):
    average = dict(_delete_=True, ema=dict(type='ExponentialMovingAverage'))
    with pytest.raises(ConfigError, match=r'^teacher\.ema: StudentFSDPStrategy .* DDPStrategy'):
        alone(dict(type='StudentFSDPStrategy'), **{'model.teacher': average})


def test_weights_of_losses_cannot_be_measured_in_shards(alone):
    message = r'^losses\.loss_kd_neck\.loss_weight: StudentFSDPStrategy .* DDPStrategy, or set'
    with pytest.raises(ConfigError, match=message):
        alone(
            dict(type='StudentFSDPStrategy'),
            **{'model.losses.loss_kd_neck.loss_weight': 'auto'},
        )


def test_a_student_with_weights_that_torch_cannot_shard_is_refused(alone):
    student = dict(single_stage('GFL'), _delete_=True)
    with pytest.raises(ConfigError, match=r'bbox_head\.scales\.0\.scale; use DDPStrategy'):
        alone(dict(type='StudentFSDPStrategy'), **{'model.student': student})


def deepspeed_is_there() -> str | None:
    """Why it cannot be tested, if so."""
    try:
        from deepspeed.runtime.fp16 import onebit  # noqa: F401  (mmengine 0.10 asks for it)
    except ImportError:
        return 'needs a deepspeed that has runtime.fp16.onebit, as 0.16 does'
    if not (shutil.which('ninja') and shutil.which(os.environ.get('CXX', 'g++'))):
        return 'on the CPU, deepspeed builds an operator with ninja and a C++ compiler'
    return None


@pytest.mark.skipif(deepspeed_is_there() is not None, reason=deepspeed_is_there() or '')
def test_deepspeed_trains_the_student_and_loses_connectors_aloud(alone, tmp_path):
    strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage=0))
    sgd = dict(type='SGD', lr=0.01)
    # Under DeepSpeed, gradients are clipped by strategy.gradient_clipping.
    wrapper = dict(_delete_=True, type='DeepSpeedOptimWrapper', optimizer=sgd)
    runner = alone(strategy, optim_wrapper=wrapper)
    assert 'teacher' not in str([name for name, _ in runner.model.named_parameters()])
    folder = tmp_path / 'alone/two-stage/iter_2.pth'
    state = torch.load(folder / 'mp_rank_00_model_states.pt', weights_only=False)['module']
    load_weights(MODELS.build(CASES['two-stage'][0]()), dict(state_dict=state), 'it')
    log = next((tmp_path / 'alone/two-stage').glob('*/*.log')).read_text()
    assert 'DeepSpeedStrategy does not save the connectors' in log
    runner._resume = (
        True  # in place of another: mmengine registers deepspeed's optimizers once a process
    )
    with pytest.raises(ConfigError, match='cannot be resumed'):
        runner.call_hook('before_train')
