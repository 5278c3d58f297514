"""What tables of results share: means with their intervals, the gap closed, Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

DASH = '–'  # stands where nothing was measured


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval (Student's t); nan for one value."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return float(array.mean()), float('nan')
    error = array.std(ddof=1) / len(array) ** 0.5
    return float(array.mean()), float(stats.t.ppf(0.975, len(array) - 1) * error)


def with_error(mean: float, half: float, signed: bool = False) -> str:
    """``1.2 ± 0.3``, or the mean alone where there is no interval."""
    text = f'{mean:+.1f}' if signed else f'{mean:.1f}'
    return text if half != half else f'{text} ± {half:.1f}'


def gap_closed(teacher: float, student: float, distilled: float) -> float | None:
    """The share of what the student lacks to the teacher that distillation gave it.

    Args:
        teacher: Its mAP.
        student: That of the student trained alone.
        distilled: That of the distilled student.

    Returns:
        1 when the distilled student is as good as the teacher, negative when it got worse, and
        ``None`` when the teacher is no better than the student.
    """
    if teacher <= student:
        return None
    return (distilled - student) / (teacher - student)


def markdown_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose columns also line up on a terminal.

    Args:
        rows: Cells; the first row is the head.
        left: How many columns, from the first, are aligned to the left; the others to the right.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f'| {" | ".join(cells)} |'

    rule = ['-' * (w + 2) if i < left else '-' * (w + 1) + ':' for i, w in enumerate(widths)]
    return '\n'.join([line(rows[0]), f'|{"|".join(rule)}|', *map(line, rows[1:])])
