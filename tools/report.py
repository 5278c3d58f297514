"""Write a table and a figure of training runs: accuracy, cost, and gain of distillation.

The teacher and the baseline of each distilled run are found from the configs. Writes report.md, report.csv
and report.png.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from _cli import run_tool

if TYPE_CHECKING:
    from mmkd.analysis.rows import Row


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='report.py', description=__doc__, allow_abbrev=False)
    parser.add_argument(
        'work_dirs', nargs='+', metavar='WORK_DIR', help='work directories of training runs'
    )
    parser.add_argument(
        '--out', default='work_dirs/report', help='folder to write to (default: work_dirs/report)'
    )
    parser.add_argument(
        '--best', action='store_true', help='use the epoch with the highest mAP, not the last'
    )
    parser.add_argument(
        '--evaluate',
        action='store_true',
        help='evaluate checkpoints without a logged F1; needs the validation images',
    )
    parser.add_argument('--no-latency', action='store_true', help='do not measure time')
    parser.add_argument(
        '--image-size',
        type=int,
        nargs=2,
        default=(480, 640),
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the image for cost and time, before the test pipeline (default: 480 640)',
    )
    parser.add_argument(
        '--threads', type=int, help="number of torch threads on the CPU (default: torch's)"
    )
    for name in ('teacher', 'baseline'):
        parser.add_argument(
            f'--{name}',
            action='append',
            default=[],
            metavar='DISTILLED=WORK_DIR',
            help=f'set the {name} of a distilled run, if the configs do not determine it; repeatable',
        )
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='device to use (default: cuda if available)'
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    parser.set_defaults(gpus=None, local_rank=0)
    return parser.parse_args()


def report(args: argparse.Namespace) -> None:
    import torch
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    from mmkd.analysis.complexity import device_name
    from mmkd.analysis.page import describe, format_csv, format_rows
    from mmkd.analysis.pairing import assign_roles
    from mmkd.analysis.rows import add_costs, add_f1, read_rows
    from mmkd.checkpoints import allow_training_checkpoints
    from mmkd.errors import ConfigError

    check_options(args)
    teachers, baselines = _pairs(args.teacher, '--teacher'), _pairs(args.baseline, '--baseline')
    rows = assign_roles(read_rows(args.work_dirs, args.best), teachers, baselines)
    if not any(row.finished for row in rows):
        raise ConfigError(
            f'WORK_DIR: no run is finished, got {", ".join(row.name for row in rows)}; finish one, or name '
            f'others'
        )

    allow_training_checkpoints()
    init_default_scope('mmdet')
    MMLogger.get_current_instance().setLevel('ERROR')  # mmengine warns about uncounted operators
    if args.threads:
        torch.set_num_threads(args.threads)
    size = tuple(args.image_size)
    print(f'mmkd: work directories: {len(args.work_dirs)}, rows: {len(rows)}', flush=True)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        for row in rows if args.evaluate else ():
            add_f1(row)
        add_costs(rows, size, timed=not args.no_latency)
    device = device_name()
    table = format_rows(rows)
    text = f'{table}\n\n{describe(rows, size, device, args.best)}\n'
    write(Path(args.out), text, format_csv(rows, size, device), rows)
    print(f'\n{text}')
    for name in ('report.md', 'report.csv', 'report.png'):
        print(f'  {Path(args.out) / name}')


def check_options(args: argparse.Namespace) -> None:
    """Reject invalid options before anything is read."""
    from mmkd.errors import ConfigError

    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise ConfigError(f'--out: must be a folder, got the file {args.out}; name a folder')
    if min(args.image_size) < 32:
        raise ConfigError(f'--image-size: must be at least 32 px each, got {args.image_size}')
    if args.threads is not None and args.threads < 1:
        raise ConfigError(f'--threads: must be at least 1, got {args.threads}')


def _pairs(options: list[str], name: str) -> dict[str, str]:
    from mmkd.errors import ConfigError

    for option in options:
        if not all(option.partition('=')):
            raise ConfigError(f'{name}: must be DISTILLED=WORK_DIR, got {option!r}')
    return dict(option.split('=', 1) for option in options)


def write(out: Path, text: str, table: str, rows: Sequence[Row]) -> None:
    """Write all three files, or none of them."""
    from mmkd.analysis.statistics import interval
    from mmkd.analysis.tradeoff import Point, draw_tradeoff

    points = []
    for row in rows:
        values = row.values('mAP')
        if row.cost and values:
            baseline = row.baseline.name if row.baseline else None
            mean, error = interval(values)
            points.append(Point(row.name, row.role, row.cost.parameters, mean, error, baseline))
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out) as folder:
        (Path(folder) / 'report.md').write_text(text, encoding='utf-8')
        (Path(folder) / 'report.csv').write_text(table, encoding='utf-8')
        draw_tradeoff(points, Path(folder) / 'report.png')
        for file in sorted(Path(folder).iterdir()):
            file.replace(out / file.name)


if __name__ == '__main__':
    # Set before torch is loaded: with other load, threads that spin while waiting distort the times.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    run_tool(report, parse_args())
