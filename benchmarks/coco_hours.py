"""Estimate the duration of COCO training from measured steps.

Reads files of `tools/benchmark.py --json` and prints a Markdown table: hours of twelve epochs of train2017
on eight devices of the measured kind, for the plain student, with a live teacher and with a cached one, and
the hours one device needs to write the cache. Files of the same config, device, size and batch size,
measured with and without `--cached`, share a row.

The estimate is measured seconds times counted steps. It leaves out communication between devices, image
loading, optimizer and validation, and assumes that every image has the measured size.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# train2017 has 118,287 images; 117,266 have labels. MMDetection's configs leave the others out
# (filter_empty_gt). With 16 images per step these are the 7,330 steps per epoch of its logs.
IMAGES = 117_266
EPOCHS = 12
DEVICES = 8
# Measurements that agree in these keys share a row.
ROW_KEYS = ('config', 'device', 'threads', 'size', 'batch_size', 'amp')
ABSENT = '–'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'files', nargs='+', metavar='JSON', help='files of tools/benchmark.py --json'
    )
    parser.add_argument(
        '--images', type=int, default=IMAGES, help=f'images per epoch (default: {IMAGES})'
    )
    parser.add_argument('--epochs', type=int, default=EPOCHS, help=f'(default: {EPOCHS})')
    parser.add_argument('--devices', type=int, default=DEVICES, help=f'(default: {DEVICES})')
    args = parser.parse_args()
    if min(args.images, args.epochs, args.devices) < 1:
        parser.error('--images, --epochs and --devices: must be at least 1')
    return args


def read(files: Iterable[str]) -> list[dict[str, Any]]:
    """Measurements, joined into rows, in the order of the files.

    Returns:
        Per row: the keys of :data:`ROW_KEYS`; ``student`` and ``teacher``, seconds of the student's step and
        of the teacher's pass; ``live`` and ``cached``, seconds of the distillation step. Keys that were not
        measured are missing.

    Raises:
        SystemExit: A file is not such a measurement, or two files measure the same.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    for file in files:
        try:
            numbers = json.loads(Path(file).read_text(encoding='utf-8'))
            arguments = numbers['arguments']
            found = dict(numbers, config=Path(arguments['config']).stem, amp=arguments['amp'])
            key = tuple(str(found[name]) for name in ROW_KEYS)
            own = {name: float(numbers[f'{name}_s']) for name in ('student_step', 'teacher_pass')}
            kd = float(numbers['kd_step_s'])
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f'{file}: must be a file of tools/benchmark.py --json, got {error!r}')
        row = rows.setdefault(key, {name: found[name] for name in ROW_KEYS})
        kind = 'cached' if arguments.get('cached') else 'live'
        if kind in row:
            sys.exit(f'{file}: measures the same as an earlier file; leave one out')
        row[kind] = kd
        if kind == 'live':
            row['teacher'] = own['teacher_pass']
        # The student's step does not depend on the kind of teacher: the first file counts.
        row.setdefault('student', own['student_step'])
    return list(rows.values())


def hours(seconds: float | None, images: int, epochs: int, devices: int, batch: int) -> str:
    """Duration of a run, from the seconds of one step; a step takes ``batch`` images per device."""
    if seconds is None:
        return ABSENT
    total = seconds * epochs * math.ceil(images / (devices * batch)) / 3600
    return f'{total:,.0f}' if total >= 100 else f'{total:.1f}'


def table(rows: list[dict[str, Any]], images: int, epochs: int, devices: int) -> str:
    """The table of hours, with its assumptions below."""
    from mmkd.analysis.tables import markdown_table

    head = ['config', 'measured on', 'images per device', 'plain student', 'live teacher']
    lines = [[*head, 'cached teacher', 'writing the cache, one device']]
    for row in rows:
        device = f'{row["device"]}, {row["threads"]} threads' if row['device'] == 'cpu' else 'GPU'
        height, width = row['size']
        batch = row['batch_size']
        cells = [
            row['config'],
            f'{device}, {height} x {width}{", AMP" if row["amp"] else ""}',
            str(batch),
            *(
                hours(row.get(name), images, epochs, devices, batch)
                for name in ('student', 'live', 'cached')
            ),
            hours(row.get('teacher'), images, 1, 1, batch),
        ]
        lines.append(cells)
    note = (
        f'Hours, estimated: {epochs} epochs of {images:,} images on {devices} devices, each step as long as '
        f'the measured one (forward and backward). Communication, loading, optimizer and validation are not '
        f'in it. The cache is written once, by one pass of the teacher over all images.'
    )
    return f'{markdown_table(lines, left=2)}\n\n{note}'


def main(args: argparse.Namespace) -> None:
    print(table(read(args.files), args.images, args.epochs, args.devices))


if __name__ == '__main__':
    main(parse_args())
