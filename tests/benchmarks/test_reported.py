"""The paper's figures beside measured ones, on work directories of real trainings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from reported import REPORTED, match_reported, reported_table
from tiny_runs import copied, set_scores

from mmkd.analysis.pairing import assign_roles
from mmkd.analysis.rows import Row, add_costs, read_rows
from mmkd.analysis.work_dir import WorkDir
from mmkd.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scored(runs, tmp_path):
    """Copies with metrics by which figures can be told."""
    set_scores(copied(runs, 'distilled_seed0', tmp_path / 'distilled_seed0'), mAP=0.22, F1=0.3)
    set_scores(copied(runs, 'teacher', tmp_path / 'teacher'), mAP=0.5, F1=0.6)
    return tmp_path


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


def reported_lines(text):
    lines = [cells(line) for line in text.splitlines() if line.startswith('|')]
    return {(line[1], line[2]): line[3:] for line in lines[2:]}


def test_reported_figures_stand_apart_from_measured_ones(scored):
    rows = assign_roles(read_rows([scored / 'distilled_seed0', scored / 'teacher']))
    add_costs(rows, (64, 96), timed=False)
    assert match_reported(rows) == {}
    told = {'detr-r18-distilled': str(scored / 'distilled_seed0')}
    matched = match_reported(rows, told)
    lines = reported_lines(reported_table(matched))
    title = REPORTED['detr-r18-distilled'].title
    assert lines[title, 'F1'] == ['53', '30.0', 'distilled_seed0']
    assert lines[title, 'mAP'] == ['–', '22.0', 'distilled_seed0']
    assert lines[title, 'epochs'] == ['10', '2', 'distilled_seed0']
    assert lines[REPORTED['vitdet'].title, 'mAP'] == ['50', '–', '–']
    assert lines[REPORTED['dino'].title, 'parameters'] == ['110 M', '–', '–']
    # What tells other classes apart is no measurement of the reported thing.
    text = reported_table(match_reported(rows, {'vitdet': str(scored / 'teacher')}))
    assert reported_lines(text)[REPORTED['vitdet'].title, 'mAP'] == ['50', '–', '–']
    assert 'teacher has 2 classes, the reported detector 20' in text


def test_a_training_of_another_schedule_is_told(monkeypatch, tmp_path):
    """What was cut short or trained on a part of the images must not pass for the reported thing."""
    (name,) = REPORTED['mobilenetv2'].configs
    monkeypatch.setenv('MMKD_VOC', f'{tmp_path}/elsewhere/')
    (path,) = (ROOT / 'configs').rglob(f'{name}.py')
    row = Row([WorkDir(tmp_path, Config.fromfile(path), (name,), trained=10, length=10)], 'mine')
    monkeypatch.delenv('MMKD_VOC')
    assert 'was not trained' not in reported_table({'mobilenetv2': row})
    row.first.config.merge_from_dict(
        {'train_dataloader.dataset.indices': 4, 'train_cfg.max_epochs': 1}
    )
    said = reported_table({'mobilenetv2': row}).splitlines()[-1]
    assert f'mine was not trained with {name}: ' in said
    assert 'train_dataloader.dataset.indices is not set, here 4' in said
    assert 'train_cfg.max_epochs is 10, here 1' in said


def test_a_training_is_known_by_its_configs_name(runs, tmp_path):
    (name,) = REPORTED['mobilenetv2'].configs
    folder = copied(runs, 'student_seed0', tmp_path / 'mine')
    (folder / 'student_seed0.py').rename(folder / f'{name}.py')
    rows = read_rows([folder, runs / 'teacher'])
    assert match_reported(rows) == {'mobilenetv2': rows[0]}
    other = copied(runs, 'short', tmp_path / 'other')
    (other / 'short.py').rename(other / f'{name}.py')
    with pytest.raises(ConfigError, match='--as mobilenetv2: matches mine, other; choose one'):
        match_reported(read_rows([folder, other]))
    with pytest.raises(ConfigError, match='no such figure; near: vitdet'):
        match_reported(rows, {'vitdat': str(folder)})


def test_reported_configs_exist_or_are_mmdets():
    known = {path.stem for path in (ROOT / 'configs').rglob('*.py')}
    realised = {name for reported in REPORTED.values() for name in reported.configs}
    assert realised - known == {'detr_r50_8xb2-150e_coco'}


def test_the_command_prints_the_table_and_refuses_what_it_does_not_know(scored):
    def run(*arguments):
        command = [sys.executable, str(ROOT / 'benchmarks/reported.py'), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=scored)

    found = run('teacher', 'distilled_seed0', '--as', 'detr-r18-distilled=distilled_seed0')
    assert found.returncode == 0
    assert ['53', '30.0', 'distilled_seed0'] in [
        cells(line)[3:] for line in found.stdout.splitlines()
    ]
    for arguments, message in (
        (('--as', 'vitdet'), "--as: must be FIGURE=WORK_DIR, got 'vitdet'"),
        (('--as', 'vit=teacher'), '--as vit: no such figure; near: vitdet'),
        (('--as', 'vitdet=distilled_seed0'), 'must be one of the work directories'),
    ):
        found = run('teacher', *arguments)
        assert found.returncode == 2 and message in found.stderr.strip().splitlines()[-1]
