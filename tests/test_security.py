"""What SECURITY.md says of files that are not trusted: pickles that would create a folder if they were run."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from tiny_models import ROI_LOSSES, faster_rcnn, save_teacher
from tiny_training import training_config, write_coco

ROOT = Path(__file__).parents[1]
FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path) -> Path:
    """A folder that is there once a bomb has run, ``bomb.pth`` and ``bomb.pkl`` beside it."""
    mark = tmp_path / 'exploded'
    torch.save(dict(state_dict={}, meta=_Bomb(mark)), tmp_path / 'bomb.pth')
    (tmp_path / 'bomb.pkl').write_bytes(pickle.dumps(dict(weights=_Bomb(mark))))
    return mark


@pytest.fixture
def config(tmp_path) -> Config:
    data = write_coco(tmp_path / 'data', images=2)
    return training_config(faster_rcnn(), data, tmp_path / 'work', iters=1)


def distilled(config: Config, folder: Path) -> None:
    config.dump(str(folder / 'teacher.py'))
    teacher = dict(config=str(folder / 'teacher.py'), checkpoint=str(folder / 'bomb.pth'))
    student = config.model.to_dict()
    config.model = dict(type='Distiller', student=student, teacher=teacher, losses=ROI_LOSSES)


def converted(config: Config, folder: Path) -> None:
    checkpoint = str(folder / 'bomb.pkl')
    config.model.backbone.init_cfg = dict(
        type='ConvertedCheckpoint', source='mae', checkpoint=checkpoint
    )


# Arguments of the tool after the config, and what makes the config name the file.
MMKD_READS: dict[str, tuple[list[str], Callable[[Config, Path], Any]]] = {
    'teacher': (['train'], distilled),
    'converted': (['train'], converted),
    'load_from': (['train'], lambda cfg, folder: cfg.update(load_from=str(folder / 'bomb.pth'))),
    'resume': (['train', '--resume', 'bomb.pth'], lambda *_: None),
    'predict': (['predict', 'bomb.pth', 'data/images', '--out', 'out'], lambda *_: None),
    'publish': (['publish', 'bomb.pth', '--out', 'out'], lambda *_: None),
    'export': (['export', 'bomb.pth', '--out', 'out'], lambda *_: None),
}


@pytest.mark.parametrize('case', MMKD_READS)
def test_what_mmkd_reads_is_refused_and_not_run(case, config, mark, tool, tmp_path, capsys):
    (name, *arguments), change = MMKD_READS[case]
    if case == 'export':
        for package in ('onnx', 'onnxscript', 'onnxruntime'):
            pytest.importorskip(package)
    change(config, tmp_path)
    config.dump(str(tmp_path / 'config.py'))
    assert tool(name, 'config.py', *arguments, '--device', 'cpu') == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert 'is refused' in line and 'bomb.p' in line and 'could run code' in line
    assert not mark.exists()


def pretrained(config: Config, folder: Path) -> None:
    checkpoint = str(folder / 'bomb.pth')
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)


def latest(config: Config, folder: Path) -> None:
    (folder / 'work').mkdir()
    (folder / 'bomb.pth').rename(folder / 'work/iter_1.pth')
    (folder / 'work/last_checkpoint').write_text(str(folder / 'work/iter_1.pth'))


MMENGINE_READS: dict[str, tuple[list[str], Callable[[Config, Path], Any]]] = {
    'test': (['test', 'bomb.pth'], lambda *_: None),
    'latest': (['train', '--resume'], latest),
    'pretrained': (['train'], pretrained),
}


@pytest.mark.parametrize('case', MMENGINE_READS)
def test_what_mmengine_reads_is_not_run_where_torch_is_told_so(
    case, config, mark, tool, tmp_path, monkeypatch
):
    (name, *arguments), change = MMENGINE_READS[case]
    change(config, tmp_path)
    config.dump(str(tmp_path / 'config.py'))
    monkeypatch.setenv(FORCE, '1')
    try:
        assert tool(name, 'config.py', *arguments, '--device', 'cpu') == 2
    except pickle.UnpicklingError as error:
        assert 'mkdir' in str(error)
    assert not mark.exists()


def test_training_resuming_and_testing_work_where_torch_is_told_so(
    config, tool, tmp_path, monkeypatch
):
    monkeypatch.setenv(FORCE, '1')
    student = config.model.to_dict()
    config.dump(str(tmp_path / 'teacher.py'))
    checkpoint = save_teacher(tmp_path / 'teacher.pth', faster_rcnn())
    teacher = dict(config=str(tmp_path / 'teacher.py'), checkpoint=str(checkpoint))
    config.model = dict(type='Distiller', student=student, teacher=teacher, losses=ROI_LOSSES)
    config.dump(str(tmp_path / 'config.py'))
    assert tool('train', 'config.py', '--device', 'cpu') == 0
    again = ('--device', 'cpu', '--cfg-options', 'train_cfg.max_iters=2')
    assert tool('train', 'config.py', '--resume', *again) == 0
    assert tool('test', 'config.py', 'work/iter_2.pth', '--device', 'cpu') == 0


def test_the_page_names_files_that_exist():
    page = (ROOT / 'SECURITY.md').read_text(encoding='utf-8')
    assert FORCE in page
    named = re.findall(r'`((?:mmkd|tests)/[\w/.]*)`', page)
    assert len(named) > 5 and all((ROOT / name).exists() for name in named)
