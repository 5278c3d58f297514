"""Draw accuracy against size for teachers, baselines and distilled students."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOUR_OF = dict(teacher='#0f766e', baseline='#6b7280', distilled='#d97706', other='#2563eb')
SPACING = 0.06  # minimum distance of labels, as a fraction of the height of the axes


@dataclass(frozen=True)
class Point:
    """One detector.

    Attributes:
        name: Label of the point.
        role: A key of :data:`COLOUR_OF`.
        parameters: Number of parameters.
        mAP: In 0..1.
        error: Half of the confidence interval, nan without one.
        baseline: Label of the point at which an arrow to this point starts.
    """

    name: str
    role: str
    parameters: int
    mAP: float  # noqa: N815  (as the metric is written)
    error: float = float('nan')
    baseline: str | None = None


def draw_tradeoff(points: Sequence[Point], out_file: str | os.PathLike[str]) -> None:
    """Draw mAP against millions of parameters, with arrows from baselines to distilled students.

    Args:
        points: Any number; each teacher is also drawn as a horizontal line.
        out_file: The PNG file to write.
    """
    figure = Figure(figsize=(8, 5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    by_name = {point.name: point for point in points}
    top = max((100 * (p.mAP + (p.error if p.error == p.error else 0)) for p in points), default=1)
    axes.set_ylim(0, 1.12 * top or 1)
    right = max((point.parameters / 1e6 for point in points), default=1)
    axes.set_xlim(0, 1.35 * right or 1)  # room for the label of the largest
    for point in points:
        x, y, colour = point.parameters / 1e6, 100 * point.mAP, COLOUR_OF[point.role]
        if point.role == 'teacher':
            axes.axhline(y, color=colour, linestyle='--', linewidth=1.2, alpha=0.6, zorder=1)
        if point.error == point.error:
            axes.errorbar(x, y, 100 * point.error, color=colour, capsize=4, zorder=2)
        axes.scatter([x], [y], s=60, color=colour, zorder=3)
        start = by_name.get(point.baseline or '')
        if start:
            arrow = dict(arrowstyle='-|>', color=colour, linewidth=1.6, shrinkA=5, shrinkB=5)
            axes.annotate(
                '', (x, y), (start.parameters / 1e6, 100 * start.mAP), arrowprops=arrow, zorder=2
            )
    for point, height in zip(points, _label_heights(points, axes.get_ylim()[1]), strict=True):
        axes.annotate(
            f'{point.name}  {100 * point.mAP:.1f}',
            (point.parameters / 1e6, height),
            xytext=(9, 0),
            textcoords='offset points',
            va='center',
            fontsize=9,
            color=COLOUR_OF[point.role],
            bbox=dict(facecolor='white', edgecolor='none', pad=0.8, alpha=0.8),
            zorder=4,
        )
    roles = [role for role in COLOUR_OF if any(point.role == role for point in points)]
    for role in roles:
        axes.scatter([], [], s=60, color=COLOUR_OF[role], label=role)
    if roles:
        figure.legend(frameon=False, loc='outside upper right', ncols=len(roles))
    axes.set_xlabel('parameters (millions)')
    axes.set_ylabel('mAP (%)')
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(out_file, dpi=120, format='png')


def _label_heights(points: Sequence[Point], top: float) -> list[float]:
    """The heights of the labels: at their points, or higher to avoid overlap with other labels."""
    heights = [0.0] * len(points)
    last = float('-inf')
    for i in sorted(range(len(points)), key=lambda i: points[i].mAP):
        heights[i] = last = max(100 * points[i].mAP, last + SPACING * top)
    return heights
