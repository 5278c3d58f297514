"""Diagnose a distillation before training, from a few real batches.

Tests the teachers on validation images, unchanged and with red and blue swapped; also the student if it has
weights (load_from, or --checkpoint). For each loss, measures the norm of its gradient relative to the task
losses and the cosine between the two. Measures time and memory of one training step. Each finding is one line
with the config key and the change to make. The exit code is 0 without findings, else 2. Nothing is trained or
written. All losses are active, independent of their schedules.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _cli import load_config, make_parser, run_tool, warn

if TYPE_CHECKING:
    from mmkd.analysis.diagnosis import Diagnosis


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        '--checkpoint', help="weights of the student (default: the config's load_from, if any)"
    )
    parser.add_argument(
        '--images', type=int, default=100, help='number of validation images (default: 100)'
    )
    parser.add_argument(
        '--batches', type=int, default=3, help='number of training batches (default: 3)'
    )
    parser.add_argument('--batch-size', type=int, help="images per batch (default: the config's)")
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of batches and initial weights (default: 0)'
    )
    parser.add_argument('--json', metavar='FILE', help='write the numbers to a JSON file too')
    return parser.parse_args()


def doctor(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from mmengine.runner import set_random_seed

    from mmkd.analysis.complexity import build_test_data
    from mmkd.analysis.diagnosis import diagnose
    from mmkd.analysis.run_start import build_distillation, with_all_active
    from mmkd.preflight import PlannedRun, require

    check_options(args)
    cfg = with_all_active(load_config(args, modes=()), args.config)
    tests = cfg.get('val_dataloader') is not None
    require(PlannedRun(cfg, ('train', 'val') if tests else ('train',), path=args.config), warn)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    MMLogger.get_current_instance().setLevel('WARNING')  # mmengine logs each initialised weight
    set_random_seed(args.seed)
    distiller, is_trained, batches = build_distillation(
        cfg, args.batches, args.batch_size, args.seed, args.checkpoint
    )
    validation = build_test_data(cfg, 'val_dataloader') if tests else None
    found = diagnose(distiller, batches, validation, args.images, is_trained)
    print('\n'.join(report(found)))
    if args.json:
        Path(args.json).write_text(json.dumps(as_json(found), indent=2) + '\n', encoding='utf-8')
    if found.findings:
        sys.stdout.flush()
        sys.exit(2)


def check_options(args: argparse.Namespace) -> None:
    """Reject invalid options before anything is built."""
    from mmkd.errors import ConfigError

    for name in ('images', 'batches', 'batch_size'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f'--{name.replace("_", "-")}: must be at least 1, got {value}')
    if args.launcher != 'none':
        raise ConfigError('--launcher: doctor runs in a single process; remove --launcher')
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise ConfigError(f'--json: no such folder: {Path(args.json).parent}; name another file')


def report(found: Diagnosis) -> Iterator[str]:
    """The lines to print: measurements, then findings."""
    if found.scores:
        yield f'On {found.images} validation images:'
        for name, score in found.scores.items():
            yield f'  {name}: mAP {100 * score.map:.1f}, AP50 {100 * score.ap50:.1f}'
        yield ''
    yield 'Preprocessing:'
    for name, settings in found.preprocessing.items():
        channels, *others = settings.items()
        yield f'  {name}: {channels[1]}, ' + ', '.join(f'{key} {it}' for key, it in others)
    for name, pairs in found.classes.items():
        named = [ours if ours == theirs else f'{ours} = {theirs}' for ours, theirs in pairs.items()]
        yield f'Classes of the {name}: {", ".join(named)}'
    yield ''
    width = max(map(len, found.gradients))
    yield f'{"":<{width}}  {"value":>9}  {"ratio":>7}  {"cosine":>6}   (gradient, relative to task losses)'
    for name, each in found.gradients.items():
        yield f'{name:<{width}}  {each.value:>9.4g}  {each.ratio:>7.3f}  {each.cosine:>6.2f}'
    if found.cost is not None:
        yield ''
        yield from cost_lines(found)
    if found.notes:
        yield ''
        yield from (f'note: {note}' for note in found.notes)
    yield ''
    if not found.findings:
        yield 'No findings.'
        return
    yield f'{len(found.findings)} findings:' if len(found.findings) > 1 else '1 finding:'
    yield from (f'  {finding}' for finding in found.findings)


def cost_lines(found: Diagnosis) -> Iterator[str]:
    """The lines on time and memory of a training step."""
    cost = found.cost
    assert cost is not None
    step, plain = cost.kd_step_s, cost.student_step_s
    memory = cost.peak_memory_mb
    yield (
        f'A distillation step takes {step:.3g} s, {step / plain:.2f} times a plain step; the teacher takes '
        f'{100 * cost.teacher_pass_s / step:.0f} % of it.'
    )
    yield (
        f'Its peak memory is {memory["kd_step"]:.0f} MB (plain step: {memory["student_step"]:.0f} MB); '
        f'{cost.teacher_weights_mb:.0f} MB of it are teacher weights.'
    )


def as_json(found: Diagnosis) -> dict[str, Any]:
    """The diagnosis as plain values, with None for NaN, which JSON lacks."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return plain(dataclasses.asdict(found))


if __name__ == '__main__':
    run_tool(doctor, parse_args())
