"""What all tools share: errors in one line, configs by name, a data set elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config

import mmkd.errors

CONFIGS = Path(__file__).parents[2] / 'configs'
STUDENT = CONFIGS / 'students/faster-rcnn_mobilenetv2_fpn_10e_voc2012.py'


def the_line(capsys: pytest.CaptureFixture) -> str:
    """The one line on stderr that the user reads."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith('mmkd: error: ')
    return lines[0]


def test_missing_data_is_told_in_one_line_before_anything_is_written(tool, capsys, tmp_path):
    assert tool('train', STUDENT, '--cfg-options', 'data_root=nowhere/VOCdevkit') == 2
    line = the_line(capsys)
    assert 'nowhere/VOCdevkit' in line
    assert 'VOCtrainval_11-May-2012.tar' in line
    assert '--cfg-options data_root=' in line
    assert not list(tmp_path.iterdir())


def test_missing_config_offers_near_names(tool, capsys):
    assert tool('train', 'configs/faster-rcnn_r50_to_mobilenetv2_voc2O12.py') == 2
    assert 'did you mean faster-rcnn_r50_to_mobilenetv2_voc2012.py' in the_line(capsys)


def test_config_is_found_by_name(tool, capsys):
    assert tool('train', STUDENT.name, '--cfg-options', 'data_root=nowhere/VOCdevkit') == 2
    output = capsys.readouterr()
    assert str(STUDENT) in output.out
    assert 'nowhere/VOCdevkit' in output.err


def test_config_with_a_missing_base_is_told_in_one_line(tool, capsys, tmp_path):
    (tmp_path / 'child.py').write_text("_base_ = './parent.py'\n")
    assert tool('train', 'child.py') == 2
    assert 'parent.py' in the_line(capsys)


def test_option_without_a_value_is_told_in_one_line(tool, config, capsys):
    assert tool('train', config, '--cfg-options', 'train_cfg.max_iters') == 2
    assert 'KEY=VALUE' in the_line(capsys)


def test_data_root_reaches_loaders_and_evaluators(tool, config, capsys, tmp_path):
    elsewhere = (tmp_path / 'data').rename(tmp_path / 'elsewhere')
    assert tool('train', config, '--gpus', 0) == 2
    assert f'{tmp_path}/data' in the_line(capsys)
    arguments = ('--gpus', 0, '--work-dir', 'w', '--cfg-options', f'data_root={elsewhere}')
    assert tool('train', config, *arguments) == 0
    run = Config.fromfile(str(tmp_path / 'w/tiny.py'))
    assert run.val_evaluator.ann_file == f'{elsewhere}/annotations.json'


@MODELS.register_module(force=True)
class FailingModel:
    def __init__(self, error: str) -> None:
        raise getattr(mmkd.errors, error, ZeroDivisionError)('what is wrong\nand what to do')


@pytest.mark.parametrize(
    'error', ['ConfigError', 'PathError', 'MissingFileError', 'CheckpointError']
)
def test_a_users_fault_inside_a_registry_is_still_one_line(tool, config, capsys, error):
    failing = Path(config).with_name('failing.py')
    failing.write_text(
        f"_base_ = './{config.name}'\n"
        f"model = dict(_delete_=True, type='FailingModel', error='{error}')\n"
    )
    assert tool('train', failing, '--gpus', 0) == 2
    assert the_line(capsys).endswith('what is wrong and what to do')
    with pytest.raises(getattr(mmkd.errors, error)):
        tool('train', failing, '--gpus', 0, '--debug')


def test_an_unexpected_error_keeps_its_traceback(tool, config):
    failing = Path(config).with_name('failing.py')
    failing.write_text(
        f"_base_ = './{config.name}'\nmodel = dict(_delete_=True, type='FailingModel', error='')\n"
    )
    with pytest.raises(ZeroDivisionError):
        tool('train', failing, '--gpus', 0)


@MODELS.register_module(force=True)
class HandlingModel:
    """Fails by itself while it handles a user's fault."""

    def __init__(self) -> None:
        try:
            raise mmkd.errors.ConfigError('what is wrong')
        except mmkd.errors.ConfigError:
            {}['none']


def test_an_unexpected_error_while_a_fault_is_handled_is_not_passed_off_as_it(tool, config, capsys):
    failing = Path(config).with_name('failing.py')
    failing.write_text(
        f"_base_ = './{config.name}'\nmodel = dict(_delete_=True, type='HandlingModel')\n"
    )
    with pytest.raises(KeyError):
        tool('train', failing, '--gpus', 0)
    assert 'mmkd: error' not in capsys.readouterr().err
