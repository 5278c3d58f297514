"""Teachers whose weights two processes share, on CPU with gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sharding_worker import CASES, work
from tiny_models import faster_rcnn, save_teacher
from torch import multiprocessing

from mmkd.errors import ConfigError
from mmkd.teachers import LiveTeacher


@pytest.fixture(scope='module')
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What both processes saw, by case."""
    folder = tmp_path_factory.mktemp('shards')
    for name, (_, teacher, _) in CASES.items():
        save_teacher(folder / f'{name}.pth', teacher())
    multiprocessing.spawn(work, args=(2, str(folder)), nprocs=2)
    return [torch.load(folder / f'rank{rank}.pth') for rank in range(2)]


@pytest.mark.parametrize('case', CASES)
def test_says_what_the_whole_teacher_says(reports, case):
    for report in reports:
        assert report[case]['sharded'] == report[case]['whole']
        assert all(value > 0 for step in report[case]['whole'] for value in step.values())
    assert reports[0][case]['whole'] != reports[1][case]['whole']  # on images of its own


@pytest.mark.parametrize('case', CASES)
def test_each_process_keeps_its_share_alone(reports, case):
    one, two = (report[case] for report in reports)
    shared = [
        name for name in one['weights'] if name.startswith(('backbone', 'encoder', 'decoder'))
    ]
    assert shared
    for name in shared:
        assert one['local'][name] + two['local'][name] == one['weights'][name], name
    for report in (one, two):
        assert sum(report['local'][name] for name in shared) < 0.6 * sum(
            report['weights'][name] for name in shared
        )
        # A share is not a view into the whole.
        assert all(
            report['memory'][name] < one['weights'][name]
            for name in shared
            if one['weights'][name] > 64
        )
        assert not report['gradients']
        assert not any('teacher' in name for name in report['names'])


def test_large_modules_are_units_of_their_own(reports):
    found = reports[0]['two-stage']['units']
    assert {'backbone', 'neck'} < set(found)
    assert any(name.startswith('backbone.layer4.') for name in found)
    assert not any(name.startswith(('roi_head', 'rpn_head')) for name in found)


def test_what_is_no_truth_value_is_refused(tmp_path: Path):
    checkpoint = save_teacher(tmp_path / 'teacher.pth', faster_rcnn())
    with pytest.raises(ConfigError, match=r"teacher.shard: must be True or False, got 'yes'"):
        LiveTeacher(dict(model=faster_rcnn()), str(checkpoint), shard='yes')
