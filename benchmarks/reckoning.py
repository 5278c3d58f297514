"""Reckon what a training of COCO would take, from steps that were measured.

Reads what `tools/benchmark.py --json` wrote and prints a table in Markdown: hours of twelve epochs of
COCO's train2017 on eight devices of the kind that was measured, of the plain student, with a live teacher
and with a cached one, and hours of one device to write the cache. Files of one config, device, size and
batch, measured with and without `--cached`, share a row.

A product of measured seconds and counted steps, no measurement of a training: no communication between
devices, no loading of images, no optimizer, no validation is in it, and every image is as large as those of
the measured batch.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Of the 118,287 images of train2017, 117,266 have labels; MMDetection's configs leave the others out
# (filter_empty_gt). With 16 images a step these are the 7,330 steps an epoch of its logs.
IMAGES = 117_266
EPOCHS = 12
DEVICES = 8
# What two measurements must share to stand in one row.
SAME = ('config', 'device', 'threads', 'size', 'batch_size', 'amp')
ABSENT = '–'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('files', nargs='+', metavar='JSON', help='of tools/benchmark.py --json')
    parser.add_argument('--images', type=int, default=IMAGES, help=f'an epoch (default: {IMAGES})')
    parser.add_argument('--epochs', type=int, default=EPOCHS, help=f'(default: {EPOCHS})')
    parser.add_argument('--devices', type=int, default=DEVICES, help=f'(default: {DEVICES})')
    args = parser.parse_args()
    if min(args.images, args.epochs, args.devices) < 1:
        parser.error('--images, --epochs and --devices are at least 1')
    return args


def read(files: Iterable[str]) -> list[dict[str, Any]]:
    """Measurements, those that belong together joined; in the order of the files.

    Returns:
        Of each what :data:`SAME` names; ``student`` and ``teacher``, seconds of the student's step and of the
        teacher's pass; ``live`` and ``cached``, of the distillation step. None where it was not measured.

    Raises:
        SystemExit: A file is no such measurement, or two measure the same.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    for file in files:
        try:
            numbers = json.loads(Path(file).read_text(encoding='utf-8'))
            arguments = numbers['arguments']
            found = dict(numbers, config=Path(arguments['config']).stem, amp=arguments['amp'])
            key = tuple(str(found[name]) for name in SAME)
            own = {name: float(numbers[f'{name}_s']) for name in ('student_step', 'teacher_pass')}
            kd = float(numbers['kd_step_s'])
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f'{file} is not what tools/benchmark.py --json writes: {error!r}')
        row = rows.setdefault(key, {name: found[name] for name in SAME})
        way = 'cached' if arguments.get('cached') else 'live'
        if way in row:
            sys.exit(f'{file} measures what another file has measured before')
        row[way] = kd
        if way == 'live':
            row['teacher'] = own['teacher_pass']
        # A student beside a live teacher is the student beside a cached one; the first file tells.
        row.setdefault('student', own['student_step'])
    return list(rows.values())


def hours(seconds: float | None, images: int, epochs: int, devices: int, batch: int) -> str:
    """Of a training whose steps take so long; a step's images are those of all devices."""
    if seconds is None:
        return ABSENT
    total = seconds * epochs * math.ceil(images / (devices * batch)) / 3600
    return f'{total:,.0f}' if total >= 100 else f'{total:.1f}'


def table(rows: list[dict[str, Any]], images: int, epochs: int, devices: int) -> str:
    """The hours, and below them what they rest on."""
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
