"""Curves read what mmengine logs, also over an interrupt."""

from __future__ import annotations

import json

import pytest
from tiny_models import faster_rcnn
from tiny_training import train, training_config, write_coco

from mmkd.analysis.curves import Curve, curves_of, draw_curves, metric_of, read_curves
from mmkd.analysis.work_dir import read_scalars, read_work_dir
from mmkd.errors import ConfigError

MAP = 'coco/bbox_mAP'


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
        [step(10, 3.0), {MAP: 0.1, 'step': 1}, step(20, 9.0)],
        tail='{"loss": 1.',
    )
    write(tmp_path, '20250101_000500', [step(20, 2.0), {MAP: 0.2, 'step': 2}])
    curves = read_curves(read_scalars(tmp_path), 'run', ())
    assert curves.task == Curve([10, 20], [3.5, 2.5])
    assert curves.metrics == {MAP: Curve([10, 20], [0.1, 0.2])}


def test_no_run_has_no_records(tmp_path):
    assert read_scalars(tmp_path / 'absent') == []


def test_losses_are_the_detectors_own_or_distillation():
    record = step(1, 2.0, feature_kd_loss=4.5, acc=80.0) | {'loss': 7.0, 'd0.loss_cls': 1.0}
    curves = read_curves([record], 'run', ['feature_kd_loss', 'loss_idle'])
    assert curves.task.values == [pytest.approx(3.5)]
    assert curves.distillation == {'feature_kd_loss': Curve([1], [4.5])}


def test_a_run_counted_in_iterations_has_all_its_validations(tmp_path):
    """Each is logged as step 0."""
    cfg = training_config(
        faster_rcnn(), write_coco(tmp_path / 'data', 4), tmp_path / 'run', iters=6
    )
    cfg.train_cfg.val_interval = 2
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    cfg.log_processor = dict(by_epoch=False)
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    train(cfg)
    curves = curves_of(read_work_dir(tmp_path / 'run'), 'run')
    assert curves.task.steps == [1, 2, 3, 4, 5, 6]
    assert curves.metrics[MAP].steps == [2, 4, 6]


def test_curves_of_a_distilled_run(runs):
    curves = curves_of(read_work_dir(runs / 'distilled_seed0'), 'distilled')
    assert list(curves.distillation) == ['loss_kd_bbox', 'loss_kd_cls']
    assert len(curves.metrics[MAP].values) == 2
    plain = curves_of(read_work_dir(runs / 'student_seed0'), 'student')
    assert plain.distillation == {} and plain.task.steps
    figure = draw_curves([plain, curves])
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 2, 2]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label.partition(' (')[0] for label in labels] == ['student', 'distilled']
    assert len(draw_curves([plain]).axes) == 2


def test_losses_far_apart_are_drawn_on_a_logarithmic_scale():
    runs = [
        read_curves(
            [step(i, 1.0, loss_a=100.0, loss_b=low) for i in (1, 2)], 'run', ['loss_a', 'loss_b']
        )
        for low in (0.1, 90.0)
    ]
    assert [draw_curves([run]).axes[1].get_yscale() for run in runs] == ['log', 'linear']


@pytest.mark.parametrize('count', [0, 1, 9])
def test_any_number_of_runs_with_or_without_validation(count):
    runs = [
        read_curves([step(i, 1 / i) for i in range(1, 21)], f'run {i}', ()) for i in range(count)
    ]
    figure = draw_curves(runs, metric_of(runs))
    colours = {line.get_color() for line in figure.axes[0].get_lines()}
    assert len(colours) == count


def test_which_metric():
    run = read_curves([{'pascal_voc/mAP': 0.5, 'pascal_voc/AP50': 0.5, 'step': 1}], 'run', ())
    assert metric_of([run]) == 'pascal_voc/mAP'
    assert metric_of([run], 'pascal_voc/AP50') == 'pascal_voc/AP50'
    assert metric_of([]) is None
    with pytest.raises(ConfigError, match="--metric: must be a logged metric, got 'voc/mAP'; near"):
        metric_of([run], 'voc/mAP')
