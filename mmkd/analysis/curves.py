"""Training curves from work directories of MMDetection runs: losses and a validation metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..errors import ConfigError, did_you_mean
from .work_dir import METRICS, WorkDir

COLOURS = ('#4b5563', '#d97706', '#0f766e', '#7c3aed', '#be123c', '#2563eb')
PANEL = 4.8  # width of a panel, inches
STYLES = ('-', '--', ':', '-.')
# Distillation losses are drawn on a logarithmic scale if they differ by more than this factor.
WIDE_RANGE = 30.0


@dataclass
class Curve:
    """Values over iterations.

    Attributes:
        steps: Iterations.
        values: One value per iteration in ``steps``.
    """

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: float, value: float) -> None:
        """Append one value."""
        self.steps.append(step)
        self.values.append(value)


@dataclass
class RunCurves:
    """The logged values of a run.

    Attributes:
        title: Title of the run.
        task: Sum of the detector's own losses.
        distillation: Each distillation loss, including its weight, by name.
        metrics: Validation metrics, by name.
    """

    title: str
    task: Curve = field(default_factory=Curve)
    distillation: dict[str, Curve] = field(default_factory=dict)
    metrics: dict[str, Curve] = field(default_factory=dict)

    def numbers(self, metric: str | None) -> dict[str, Any]:
        """The curves as plain values, for JSON.

        Args:
            metric: The metric to keep; others are dropped.
        """
        values = asdict(self)
        found = values.pop('metrics').get(metric)
        return values | {'metric': metric, 'validation': found}


def curves_of(run: WorkDir, title: str) -> RunCurves:
    """The curves of a run.

    Args:
        run: A finished or unfinished run.
        title: Title of the run in the figure.

    Raises:
        ConfigError: The run logged neither losses nor metrics.
    """
    names = run.config.model.get('losses') or {} if run.distilled else {}
    found = read_curves(run.records, title, names)
    if not found.task.steps and not found.distillation and not found.metrics:
        raise ConfigError(
            f'{run.path}: must have losses or metrics in vis_data/scalars.json, got none; add a '
            f'LocalVisBackend to the config'
        )
    return found


def read_curves(records: Iterable[dict], title: str, names: Iterable[str]) -> RunCurves:
    """The curves in records of mmengine.

    Args:
        records: From :func:`mmkd.analysis.work_dir.read_scalars`.
        title: Title of the run in the figure.
        names: Names of the distillation losses.
    """
    found, names = RunCurves(title), set(names)
    records = list(records)
    training = [record for record in records if 'iter' in record]
    per_epoch = max((r['iter'] / r['epoch'] for r in training if r.get('epoch')), default=1.0)
    for record in training:
        # mmengine adds all values with `loss` in their name.
        losses = {k: v for k, v in record.items() if 'loss' in k and k != 'loss'}
        task = [value for name, value in losses.items() if name not in names]
        if task:
            found.task.add(record['iter'], sum(task))
        for name in sorted(names & losses.keys()):
            found.distillation.setdefault(name, Curve()).add(record['iter'], losses[name])
    for record in records:
        if 'iter' in record:
            continue
        # Runs that count iterations log each validation with step 0.
        step = record['step'] * per_epoch if record.get('step') else record.get('after', 0)
        for name, value in record.items():
            if '/' in name and isinstance(value, (int, float)):
                found.metrics.setdefault(name, Curve()).add(step, value)
    return found


def metric_of(runs: Sequence[RunCurves], name: str | None = None) -> str | None:
    """The metric to draw: COCO mAP if it was logged, else another mAP.

    Args:
        runs: The runs of one figure.
        name: The requested metric, if any.

    Raises:
        ConfigError: No run logged the requested metric.
    """
    logged = list(dict.fromkeys(metric for run in runs for metric in run.metrics))
    if name is not None:
        if name not in logged:
            raise ConfigError(
                f'--metric: must be a logged metric, got {name!r}{did_you_mean(name, logged)}'
            )
        return name
    wanted = [METRICS['mAP'], *(metric for metric in logged if metric.endswith('mAP'))]
    return next((metric for metric in wanted if metric in logged), None)


def draw_curves(runs: Sequence[RunCurves], metric: str | None = METRICS['mAP']) -> Figure:
    """Draw losses and a metric over iterations, one colour per run.

    Args:
        runs: Any number of runs.
        metric: Name of a validation metric; values in 0..1 are drawn in percent.
    """
    distilled = any(run.distillation for run in runs)
    panels = 2 + distilled
    figure = Figure(dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, sharex=True)
    colours = run_colours(len(runs))
    handles = []
    for run, colour in zip(runs, colours, strict=True):
        axes[0].plot(run.task.steps, run.task.values, color=colour, linewidth=1.6)
        values = run.metrics.get(metric or '', Curve())
        percent = [100 * value if _is_share(values) else value for value in values.values]
        axes[-1].plot(values.steps, percent, color=colour, linewidth=1.6, marker='o', markersize=4)
        # The last value is in the legend, as numbers next to the curves would overlap.
        last = f' ({percent[-1]:.1f})' if percent else ''
        handles.append(Line2D([], [], color=colour, linewidth=2, label=f'{run.title}{last}'))
    if distilled:
        _draw_distillation(axes[1], runs, colours)
    _finish(axes[0], "the detector's own losses")
    short = (metric or 'mAP').rsplit('_', 1)[-1].rsplit('/', 1)[-1]
    _finish(axes[-1], f'{short} on the validation images (%)')
    axes[0].set_xlim(left=0)
    highest = max((max(line.get_ydata(), default=0) for line in axes[-1].get_lines()), default=0)
    axes[-1].set_ylim(bottom=0, top=1.08 * highest or 1)
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(len(handles), PANEL * 10 * panels // (longest + 8)))
    figure.legend(handles=handles, loc='outside lower center', ncols=int(columns), frameon=False)
    figure.set_size_inches(PANEL * panels, 4 + 0.22 * -(-len(handles) // columns))
    return figure


def _draw_distillation(axes: Axes, runs: Sequence[RunCurves], colours: Sequence[Any]) -> None:
    names = list(dict.fromkeys(name for run in runs for name in run.distillation))
    styles = dict(zip(names, cycle(STYLES), strict=False))
    drawn: list[float] = []
    for run, colour in zip(runs, colours, strict=True):
        for name, curve in run.distillation.items():
            axes.plot(
                curve.steps, curve.values, color=colour, linewidth=1.6, linestyle=styles[name]
            )
            drawn += curve.values
    if min(drawn) > 0 and max(drawn) / min(drawn) > WIDE_RANGE:
        axes.set_yscale('log')
    _finish(axes, 'distillation losses, with their weights')
    if len(names) > 1:
        handles = [
            Line2D([], [], color='#555555', label=name, linestyle=styles[name])  # type: ignore[arg-type]
            for name in names
        ]
        axes.legend(handles=handles, frameon=False, fontsize=9)
    else:
        axes.set_title(f'{names[0]}, with its weight', fontsize=11)


def run_colours(count: int) -> list[Any]:
    """One colour for each of ``count`` runs."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    colours = matplotlib.colormaps['turbo']
    return [colours(0.05 + 0.9 * i / (count - 1)) for i in range(count)]


def _is_share(curve: Curve) -> bool:
    return max(curve.values, default=0) <= 1


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel('iteration')
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
