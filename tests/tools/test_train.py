"""tools/train.py, tools/dist_train.sh."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

TOOLS = Path(__file__).parents[2] / 'tools'


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def test_trains_into_a_work_dir_named_after_the_config_and_resumes(tool, config, tmp_path, capsys):
    assert tool('train', config, '--gpus', 0) == 0
    first = tmp_path / 'work_dirs/tiny/iter_2.pth'
    before = weights(first)

    more = ('--resume', '--cfg-options', 'train_cfg.max_iters=4', 'log_level=INFO')
    assert tool('train', config, '--gpus', 0, *more) == 0
    assert 'resumed epoch: 0, iter: 2' in capsys.readouterr().out.lower()
    after = weights(tmp_path / 'work_dirs/tiny/iter_4.pth')
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_options_of_each_parameter_are_in_the_log_file_alone(tool, config, tmp_path, capsys):
    options = ('log_level=INFO', 'optim_wrapper.paramwise_cfg.norm_decay_mult=0')
    assert tool('train', config, '--gpus', 0, '--cfg-options', *options) == 0
    printed = capsys.readouterr()
    assert 'Checkpoints will be saved to' in printed.out + printed.err
    assert 'paramwise_options' not in printed.out + printed.err
    (log,) = tmp_path.glob('work_dirs/tiny/*/*.log')
    assert 'paramwise_options -- backbone.bn1.weight:weight_decay=0' in log.read_text()


def test_cpu_is_chosen_before_anything_can_pick_a_gpu(tool, config):
    tool('train', config, '--device', 'cpu', '--resume', 'absent.pth')
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '-1'


def test_more_gpus_than_processes_is_refused(tool, config, capsys):
    assert tool('train', config, '--gpus', 4) == 2
    assert 'tools/dist_train.sh' in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without CUDA')
def test_asking_for_an_absent_gpu_is_refused(tool, config, capsys):
    assert tool('train', config, '--device', 'cuda') == 2
    assert 'no CUDA device' in capsys.readouterr().err


def test_the_runner_with_strategies_is_a_configs_choice(tool, config, tmp_path):
    options = ('runner_type=FlexibleRunner', 'strategy.type=SingleDeviceStrategy')
    assert tool('train', config, '--gpus', 0, '--cfg-options', *options) == 0
    assert weights(tmp_path / 'work_dirs/tiny/iter_2.pth')


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without CUDA')
@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.type: AmpOptimWrapper needs a GPU'),
        (
            'auto_scale_lr.enable=True',
            'auto_scale_lr.enable: the config needs auto_scale_lr=dict(base_batch',
        ),
        ('work_dir=tiny.py', 'work_dir: tiny.py is not writable'),
    ],
)
def test_what_the_config_asks_for_in_vain_is_one_line(tool, config, capsys, option, message):
    assert tool('train', config, '--device', 'cpu', '--cfg-options', option) == 2
    assert message in capsys.readouterr().err


def test_a_config_without_a_scope_is_of_mmdet(tool, config, tmp_path):
    cfg = Config.fromfile(config)
    cfg.pop('default_scope')
    cfg.dump(str(config))
    assert tool('train', config, '--device', 'cpu', '--work-dir', 'work') == 0


def test_weights_alone_are_not_resumed_from(tool, config, capsys, tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'weights.pth')
    assert tool('train', config, '--device', 'cpu', '--resume', 'weights.pth') == 2
    assert 'weights.pth has no meta and no message_hub' in capsys.readouterr().err


def test_mixed_precision_without_a_gpu_is_refused(tool, config, capsys):
    assert tool('train', config, '--amp') == 2
    assert '--amp needs a GPU' in capsys.readouterr().err


def test_options_reach_the_config_that_is_run(tool, config, tmp_path):
    work_dir = tmp_path / 'here'
    options = ('optim_wrapper.optimizer.lr=0.5', 'train_cfg.max_iters=1')
    arguments = ('--work-dir', work_dir, '--gpus', 0, '--cfg-options', *options)
    assert tool('train', config, *arguments) == 0
    run = Config.fromfile(str(work_dir / 'tiny.py'))
    assert run.optim_wrapper.optimizer.lr == 0.5
    assert run.train_cfg.max_iters == 1


def test_auto_scale_lr_without_a_base_batch_size_is_refused(tool, config, capsys):
    assert tool('train', config, '--auto-scale-lr') == 2
    assert 'base_batch_size' in capsys.readouterr().err


def test_two_processes_train_one_model_without_gpus(config, tmp_path):
    env = dict(os.environ, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='-1', OMP_NUM_THREADS='1')
    env['PYTHONPATH'] = str(TOOLS.parent)
    subprocess.run(
        ['bash', TOOLS / 'dist_train.sh', config, '2', '--cfg-options', 'log_level=INFO'],
        cwd=tmp_path,
        env=env,
        check=True,
        capture_output=True,
        timeout=200,
    )
    assert weights(tmp_path / 'work_dirs/tiny/iter_2.pth')
    log = next((tmp_path / 'work_dirs/tiny').glob('*/*.log')).read_text()
    assert 'Distributed launcher: pytorch' in log
    assert 'GPU number: 2' in log  # mmengine's words for the number of processes
