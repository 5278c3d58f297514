"""Format tables of results as Markdown, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

DASH = '–'  # marks unknown values


def with_error(mean: float, half: float, signed: bool = False) -> str:
    """``1.2 ± 0.3``, or only the mean if ``half`` is nan."""
    text = f'{mean:+.1f}' if signed else f'{mean:.1f}'
    return text if half != half else f'{text} ± {half:.1f}'


def markdown_table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table with padded columns, so that it is readable on a terminal too.

    Args:
        rows: Cells; the first row is the head.
        left: Number of left-aligned columns, from the first; the others are right-aligned.
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
