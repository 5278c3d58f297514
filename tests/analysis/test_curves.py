"""Curves read what mmengine logs, also over an interrupt."""

import json

import numpy as np
import pytest
from PIL import Image

from mmkd.analysis.curves import draw_curves, read_scalars, task_loss


def write(folder, name, records, tail=''):
    path = folder / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(f'{json.dumps(record)}\n' for record in records) + tail)


def step(number, loss, **more):
    epoch = (number - 1) // 10 + 1
    return dict(loss_cls=loss, loss_bbox=0.5, epoch=epoch, iter=number, step=number, **more)


def test_resumed_run_is_one_curve(tmp_path):
    write(
        tmp_path,
        '20250101_000000',
        [step(10, 3.0), {'coco/bbox_mAP': 0.1, 'step': 1}, step(20, 9.0)],
        tail='{"loss": 1.',
    )
    write(tmp_path, '20250101_000500', [step(20, 2.0), {'coco/bbox_mAP': 0.2, 'step': 2}])
    records = read_scalars(tmp_path)
    assert [(r['iter'], r['loss_cls']) for r in records if 'iter' in r] == [(10, 3.0), (20, 2.0)]
    assert [r['coco/bbox_mAP'] for r in records if 'iter' not in r] == [0.1, 0.2]


def test_no_run_has_no_records(tmp_path):
    assert read_scalars(tmp_path / 'absent') == []


def test_loss_of_the_task_leaves_distillation_out():
    assert task_loss(step(1, 2.0, loss_kd_cls=4.5, acc=80.0) | {'loss': 7.0}) == pytest.approx(2.5)


@pytest.mark.parametrize('runs', [{}, {'alone': 'a'}, {'alone': 'a', 'absent': 'x'}])
def test_draws_whatever_there_is(tmp_path, runs):
    write(
        tmp_path / 'a',
        '1',
        [step(i, 1 / i) for i in range(1, 21)] + [{'coco/bbox_mAP': 0.3, 'step': 2}],
    )
    draw_curves({title: tmp_path / name for title, name in runs.items()}, tmp_path / 'out.png')
    with Image.open(tmp_path / 'out.png') as picture:
        colours = len(np.unique(np.asarray(picture.convert('RGB')).reshape(-1, 3), axis=0))
    assert colours > 10
