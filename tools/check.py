"""Check a config, its data and its weights before a run, and list every fault.

Reads all annotation files and every image. The exit code is 0, or 2 if a run would fail.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from _cli import find_config, make_parser, read_config, run_tool

if TYPE_CHECKING:
    from mmkd.preflight import Verdict

MODES = ('train', 'val', 'test')


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        '--modes', nargs='+', choices=MODES, default=MODES, help='modes to check (default: all)'
    )
    parser.add_argument(
        '--sample',
        action='store_true',
        help='check only as much data as a training run checks when it starts',
    )
    parser.add_argument('--json', metavar='FILE', help='write the results to a JSON file too')
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger

    from mmkd.hooks import add_hooks
    from mmkd.preflight import PlannedRun, examine

    path = find_config(args.config)
    cfg = read_config(path, args)
    cfg.launcher = args.launcher
    add_hooks(cfg)
    MMLogger.get_current_instance().setLevel('ERROR')  # mmengine logs each initialised weight
    run = PlannedRun(cfg, args.modes, path=args.config, whole=not args.sample)
    verdicts = []
    for verdict in examine(run):
        verdicts.append(verdict)
        for line in rows(verdict):
            print(line, flush=True)
    errors = sum(len(verdict.errors) for verdict in verdicts)
    advice = sum(len(verdict.advice) for verdict in verdicts)
    print(f'\n{args.config}: {counted(errors, "error")}, {counted(advice, "warning")}')
    if args.json:
        found = [as_json(verdict) for verdict in verdicts]
        Path(args.json).write_text(json.dumps(found, indent=2) + '\n', encoding='utf-8')
    if errors:
        sys.exit(2)


def rows(verdict: Verdict) -> list[str]:
    """The lines of one check: its name, and its result or its findings."""
    name = verdict.check.name
    found = [('error', each) for each in verdict.errors]
    found += [('warning', each) for each in verdict.advice]
    if not found:
        word, why = ('passed', '')
        if verdict.skipped:
            word, why = 'skipped', f'needs: {verdict.skipped}'
        return [f'{name:<20}{word:<9}{why}'.rstrip()]
    lines = [f'{word:<9}{" ".join(str(each).split())}' for word, each in found]
    return [f'{name if not index else "":<20}{line}' for index, line in enumerate(lines)]


def as_json(verdict: Verdict) -> dict[str, object]:
    """The result of one check as plain values."""
    return dict(
        check=verdict.check.name,
        verdict=verdict.status,
        errors=[str(error) for error in verdict.errors],
        warnings=[str(each) for each in verdict.advice],
        needs=verdict.skipped,
    )


def counted(count: int, noun: str) -> str:
    """A count with its noun, in the plural if needed."""
    return f'{count} {noun}{"" if count == 1 else "s"}'


if __name__ == '__main__':
    os.environ.setdefault('KINETO_LOG_LEVEL', '6')
    run_tool(check, parse_args())
