"""The report as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .rows import Row
from .statistics import interval
from .tables import DASH, markdown_table, with_error
from .work_dir import METRICS

HEAD = (
    *('', 'role', 'runs', 'parameters', 'GFLOPs', *METRICS, 'ms per image'),
    *('gain', 'gap closed', 'epochs', 'checkpoint'),
)


def format_rows(rows: Sequence[Row]) -> str:
    """A Markdown table with one line per row; unknown values are a dash."""
    return markdown_table([HEAD, *map(_cells, rows)], left=2)


def _cells(row: Row) -> list[str]:
    cost, gain, gap = row.cost, row.gain(), row.gap_closed()
    epochs = DASH if row.first.trained is None else str(row.first.trained)
    if row.first.trained is not None and row.first.unit == 'iter':
        epochs += ' iterations'
    if not row.finished:
        epochs += f' of {row.first.length}'
    return [
        row.name,
        row.role,
        str(len(row.runs)),
        f'{cost.parameters / 1e6:.2f} M' if cost else DASH,
        f'{cost.flops / 1e9:.3f}' if cost else DASH,
        *(_percent(row.values(metric)) for metric in METRICS),
        f'{cost.ms_per_image:.1f}' if cost and cost.ms_per_image is not None else DASH,
        DASH if gain is None else with_error(100 * gain[0], 100 * gain[1], signed=True),
        DASH if gap is None else f'{100 * gap:.0f} %',
        epochs,
        ', '.join(_checkpoints(row)) or DASH,
    ]


def _percent(values: list[float] | None) -> str:
    return DASH if values is None else with_error(*interval([100 * value for value in values]))


def _checkpoints(row: Row) -> list[str]:
    """Distinct names of the checkpoint files."""
    return list(dict.fromkeys(Path(run.checkpoint).name for run in row.runs if run.checkpoint))


def describe(
    rows: Sequence[Row], image_size: tuple[int, int], device: str, best: bool = False
) -> str:
    """Explain the numbers, and list teacher, baseline and notes of each row."""
    when = (
        'of the best epoch of each run; it was chosen by mAP on the same images, so these numbers are too '
        'high'
        if best
        else 'after the last epoch of each run'
    )
    lines = [
        f"Accuracy in percent on each config's validation images, {when}. mAP: over IoU 0.5 to 0.95. "
        'AP50: at IoU 0.5. F1: at IoU 0.5 and the best score threshold of each class. Gain: points of mAP '
        'above the baseline. Gap closed: the gain as a fraction of the difference between teacher and '
        'baseline. A dash: not known, or not comparable.'
    ]
    if any(len(row.runs) > 1 for row in rows):
        lines.append(
            "± is half the width of the 95 % confidence interval: of the mean over runs (Student's t), or "
            "for a gain, of the difference of two means (Welch's t)."
        )
    measured = [(row, row.cost) for row in rows if row.cost is not None]
    if measured:
        inputs: dict[str, list[str]] = {}
        for row, cost in measured:
            inputs.setdefault('{} x {}'.format(*cost.input_size), []).append(row.name)
        sizes = ', '.join(f'{size} ({", ".join(names)})' for size, names in inputs.items())
        timed = any(cost.ms_per_image is not None for _, cost in measured)
        time = f' ms per image: median on {device}, batch size 1.' if timed else ''
        lines.append(
            'Parameters, GFLOPs and time are those of the deployed detector, without a teacher. GFLOPs: '
            f'billions of multiply-adds for a noise image of {image_size[0]} x {image_size[1]} px (height x '
            f'width), resized by the test pipeline to {sizes}.{time}'
        )
    notes = []
    for row in rows:
        pair = [f'{role} {other.name}' for role, other in _pair(row) if other]
        said = [', '.join(pair)] * bool(pair) + row.notes
        notes += [f'- {row.name}: {"; ".join(said)}.'] if said else []
    return '\n\n'.join(lines + ['\n'.join(notes)] * bool(notes))


def _pair(row: Row) -> tuple[tuple[str, Row | None], ...]:
    return ('teacher', row.teacher), ('baseline', row.baseline)


def format_csv(rows: Sequence[Row], image_size: tuple[int, int], device: str) -> str:
    """CSV with one line per row: unrounded numbers, and empty cells for unknown values."""
    lines = [_record(row, image_size, device) for row in rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _record(row: Row, image_size: tuple[int, int], device: str) -> dict[str, Any]:
    cost, gain = row.cost, row.gain()
    record = dict(name=row.name, role=row.role, runs=len(row.runs))
    record['parameters'] = cost and cost.parameters
    record['gflops'] = cost and cost.flops / 1e9
    for metric in METRICS:
        values = row.values(metric)
        record[metric], half = (None, None) if values is None else interval(values)
        record[f'{metric}_ci95'] = None if half is None or half != half else half
    record['ms_per_image'] = cost and cost.ms_per_image
    record['gain_points'] = gain and 100 * gain[0]
    record['gain_points_ci95'] = 100 * gain[1] if gain and gain[1] == gain[1] else None
    record['gap_closed'] = row.gap_closed()
    record['trained'] = row.first.trained
    record['planned'] = row.first.length
    record['unit'] = row.first.unit if row.first.trained is not None else None
    record['checkpoint'] = ' '.join(str(run.checkpoint) for run in row.runs if run.checkpoint)
    record['seeds'] = ' '.join(str(run.seed) for run in row.runs if run.seed is not None)
    record |= {role: other.name if other else None for role, other in _pair(row)}
    record['work_dirs'] = ' '.join(str(run.path) for run in row.runs)
    record['image_size'] = '{}x{}'.format(*image_size) if cost else None
    record['input_size'] = '{}x{}'.format(*cost.input_size) if cost else None
    record['device'] = device if cost and cost.ms_per_image is not None else None
    record['notes'] = '; '.join(row.notes)
    return record
