"""Training curves from the work folders of MMDetection runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .work_dir import read_scalars

COLOURS = ('#4b5563', '#d97706', '#0f766e', '#7c3aed', '#be123c', '#2563eb')
KD_PREFIX = 'loss_kd'


def task_loss(record: dict) -> float:
    """The detector's own losses of a training record, summed; without those of distillation.

    Names that begin with ``loss_kd`` are taken for distillation's.

    Args:
        record: From :func:`read_scalars`.
    """
    return sum(
        value
        for key, value in record.items()
        if key.startswith('loss_') and not key.startswith(KD_PREFIX)
    )


def draw_curves(
    runs: dict[str, str | os.PathLike[str]],
    out_file: str | os.PathLike[str],
    metric: str = 'coco/bbox_mAP',
) -> None:
    """Draw the detector's own loss and a metric over epochs, one line for each run.

    Args:
        runs: Work folders by title.
        out_file: A PNG file; its folder is made.
        metric: The name of a validation result, in 0..1; drawn in percent.
    """
    figure = Figure(figsize=(10, 4), layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for (title, work_dir), colour in zip(runs.items(), _repeat(COLOURS), strict=False):
        records = read_scalars(work_dir)
        steps = [record for record in records if 'iter' in record]
        per_epoch = _steps_per_epoch(steps)
        if steps:
            left.plot(
                [record['iter'] / per_epoch for record in steps],
                [task_loss(record) for record in steps],
                color=colour,
                label=title,
                linewidth=1.8,
            )
        values = [record for record in records if 'iter' not in record and metric in record]
        if values:
            right.plot(
                [record['step'] for record in values],
                [100 * record[metric] for record in values],
                color=colour,
                label=title,
                linewidth=1.8,
                marker='o',
                markersize=4,
            )
            right.annotate(
                f'{100 * values[-1][metric]:.1f}',
                (values[-1]['step'], 100 * values[-1][metric]),
                xytext=(6, 0),
                textcoords='offset points',
                color=colour,
                va='center',
                fontsize=10,
            )
    _finish(left, "the detector's own losses")
    if left.get_lines():
        left.legend(frameon=False, loc='upper right')  # one key serves both
    _finish(right, f'{metric.rsplit("_", 1)[-1]} on the validation images (%)')
    right.set_ylim(bottom=0)
    right.margins(x=0.1)
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_file, dpi=110)


def _repeat(colours: tuple[str, ...]) -> Iterable[str]:
    while True:
        yield from colours


def _steps_per_epoch(steps: list[dict]) -> float:
    """Iterations of one epoch: no step of an epoch is later than its last one."""
    return max((record['iter'] / record['epoch'] for record in steps), default=1.0)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel('epoch')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
