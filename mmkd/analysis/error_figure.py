"""Errors of several detectors as tables and as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .curves import run_colours
from .error_kinds import KINDS, SIZES, SUMS
from .tables import DASH, markdown_table

ALL = 'all'


def error_table(found: Mapping[str, dict[str, Any]]) -> str:
    """A table of AP50, and of dAP and number of errors of each kind; two columns per detector.

    Args:
        found: :meth:`Errors.numbers` of each detector, by title.
    """
    rows = [['', *(cell for name in found for cell in (name, 'errors'))]]
    rows.append(['AP50', *(cell for n in found.values() for cell in (f'{n["AP50"]:.1f}', ''))])
    for kind in (*KINDS, *SUMS):
        cells = []
        for numbers in found.values():
            count = numbers['count'].get(kind)
            cells += [_signed(numbers['dAP'][kind][ALL]), '' if count is None else str(count[ALL])]
        rows.append([f'dAP {kind}' if kind in KINDS else f'dAP all {kind}', *cells])
    return markdown_table(rows)


def size_table(found: Mapping[str, dict[str, Any]]) -> str:
    """A table of AP50 and of the dAP of each kind, by object size.

    Args:
        found: :meth:`Errors.numbers` of each detector, by title.
    """
    rows = [['', *(f'{name}, {size}' for name in found for size in SIZES)]]
    columns = [(numbers, size) for numbers in found.values() for size in SIZES]
    by_size = [numbers['AP50_by_size'].get(size) for numbers, size in columns]
    rows.append(['AP50', *(DASH if value is None else f'{value:.1f}' for value in by_size)])
    for kind in KINDS:
        values = [_signed(numbers['dAP'][kind][size]) for numbers, size in columns]
        rows.append([f'dAP {kind}', *values])
    return markdown_table(rows)


def _signed(value: float) -> str:
    return f'{value:+.1f}'


def draw_errors(found: Mapping[str, dict[str, Any]]) -> Figure:
    """Draw the dAP of each kind as one bar per detector, for all objects and per object size.

    Args:
        found: :meth:`Errors.numbers` of each detector, by title.
    """
    groups = (ALL, *SIZES)
    height = 0.8 / len(found)
    rows = max(4.0, 0.9 + len(KINDS) * (0.16 + 0.17 * len(found)))
    figure = Figure(figsize=(13, rows + 0.5), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(groups), sharex=True, sharey=True)
    handles = []
    for number, (numbers, colour) in enumerate(
        zip(found.values(), run_colours(len(found)), strict=True)
    ):
        positions = [row - 0.4 + height * (number + 0.5) for row in range(len(KINDS))]
        for axis, group in zip(axes, groups, strict=True):
            values = [numbers['dAP'][kind][group] for kind in KINDS]
            bars = axis.barh(positions, values, 0.9 * height, color=colour)
            axis.bar_label(bars, [f'{value:.1f}' for value in values], padding=2, fontsize=8)
        handles.append(bars)
    for axis, group in zip(axes, groups, strict=True):
        count = next(iter(found.values()))['objects'][group]
        low, high = SIZES.get(group, (0, 0))
        limits = f'below {high**0.5:.0f}² px'
        if low:
            limits = (
                f'from {low**0.5:.0f}² px'
                if high == 1e10
                else f'{low**0.5:.0f}² to {high**0.5:.0f}² px'
            )
        title = 'all objects' if group == ALL else f'{group}, {limits}'
        axis.set_title(f'{title} ({count})', fontsize=10)
        axis.set_xlabel('dAP, points of AP50')
        axis.grid(alpha=0.25, axis='x')
        axis.set_axisbelow(True)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_yticks(range(len(KINDS)), KINDS)
    axes[0].invert_yaxis()
    axes[0].margins(x=0.14)
    labels = [f'{name} (AP50 {numbers["AP50"]:.1f})' for name, numbers in found.items()]
    figure.legend(handles, labels, loc='outside lower center', ncols=4, frameon=False)
    return figure
