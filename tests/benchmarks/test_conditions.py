"""What decides a result, as training processes on this machine see it."""

from __future__ import annotations

import json
from pathlib import Path

import conditions
import numpy as np
import torch
from conditions import (
    conditions_of,
    differing_files,
    environment,
    file_checksums,
    observe_process,
)
from mmengine.config import Config
from scipy import stats
from study import Run

LINES = Path(conditions.HERE) / 'results.jsonl'


def test_the_environment_decides_nothing(monkeypatch):
    """Not how many threads there are, nor which instructions somebody prefers."""
    expected = observe_process('cpu', environment())
    assert expected['arithmetic'].endswith(', 1 thread')
    for name in ('OMP_NUM_THREADS', 'ATEN_CPU_CAPABILITY', 'MKL_CBWR', 'ONEDNN_MAX_CPU_ISA'):
        monkeypatch.setenv(name, 'default' if name != 'OMP_NUM_THREADS' else '7')
    assert environment()['OMP_NUM_THREADS'] == '1'
    assert observe_process('cpu', environment()) == expected


def test_conditions_are_arithmetic_and_versions_not_the_processor():
    versions = dict(
        torch='2.13.0', mmcv='2.3.6', mmengine='0.10', mmdet='3.5', mmkd='1', python='3'
    )
    line = dict(arithmetic='AVX2, 1 thread', versions=versions, device='one')
    same = [dict(device='another'), dict(versions=dict(versions, mmkd='2', python='4'))]
    other = [dict(arithmetic='AVX512, 1 thread'), dict(versions=dict(versions, torch='2.14.0'))]
    for changes in same:
        assert conditions_of(line | changes) == conditions_of(line)
    for changes in other:
        assert conditions_of(line | changes) != conditions_of(line)
    # Without recorded arithmetic, the device is part of the conditions.
    old = dict(versions=versions, device='one')
    assert conditions_of(old) not in (
        conditions_of(line),
        conditions_of(dict(old, device='another')),
    )


def test_what_was_read_is_known_by_its_content(tmp_path):
    """Weights of a study's own teacher by their values, as its file holds the time too."""
    folder = tmp_path / 'study' / 'kd_seed0'
    teacher = tmp_path / 'study' / 'teacher_seed0' / 'epoch_1.pth'
    given = tmp_path / 'given.pth'
    teacher.parent.mkdir(parents=True)
    (tmp_path / 'images').mkdir()
    for name in 'ab':
        (tmp_path / f'images/{name}.jpg').write_bytes(name.encode())
    images = [dict(file_name='a.jpg'), dict(file_name='b.jpg')]
    (tmp_path / 'train.json').write_text(json.dumps(dict(images=images)))
    given.write_bytes(b'weights')
    config = Config(
        dict(
            model=dict(
                student=dict(backbone=dict(init_cfg=dict(checkpoint=str(given)))),
                teacher=dict(checkpoint=str(teacher)),
            ),
            train_dataloader=dict(
                dataset=dict(
                    dataset=dict(
                        data_root=str(tmp_path),
                        ann_file='train.json',
                        data_prefix=dict(img='images/'),
                    )
                )
            ),
        )
    )

    def read(**meta):
        torch.save(dict(state_dict=dict(weight=torch.arange(3.0)), meta=meta), teacher)
        return file_checksums(Run('kd', 0, config, folder, 'digest'))

    first = read(time='noon')
    assert set(first) == {'teacher', 'given.pth', 'train: train.json', 'train: train.json, images'}
    assert read(time='night') == first
    (tmp_path / 'images/b.jpg').write_bytes(b'c')
    second = read()
    assert {name for name in first if first[name] != second[name]} == {'train: train.json, images'}
    lines = [dict(files=first), dict(files=second), dict()]
    assert differing_files(lines) == ['train: train.json, images']
    assert differing_files([lines[0], dict(files={'teacher': first['teacher']})]) == []


def test_seeds_are_no_pairs():
    """Over all runs so far, a seed that is good for the baseline is not good for a recipe too."""
    runs: dict[tuple, dict[int, float]] = {}
    for line in map(json.loads, LINES.read_text().splitlines()):
        if 'withdrawn' not in line:
            key = line['study'], conditions_of(line), line['recipe']
            runs.setdefault(key, {})[line['seed']] = line['mAP']
    theirs, ours = [], []
    for (study, used, recipe), scores in runs.items():
        base = runs.get((study, used, 'baseline'), {})
        seeds = scores.keys() & base.keys()
        if recipe != 'baseline' and len(seeds) >= 3:
            for side, found in ((theirs, base), (ours, scores)):
                side += list(
                    np.array([found[s] for s in seeds]) - np.mean([found[s] for s in seeds])
                )
    assert len(ours) > 50
    assert stats.pearsonr(theirs, ours, alternative='greater').pvalue > 0.01
