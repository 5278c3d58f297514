"""Show the gradient of each loss at the student's weights, which loss_weight has to balance.

Uses a few batches of the training data, and the weights at the start of a training run (or --checkpoint). For
each loss: its value, the norm of its gradient at every module of the student, and norm (ratio) and direction
(cosine) relative to the gradient of the student's own losses, at the weights that both reach. Nothing is
trained. All losses are active, independent of their schedules. A teacher with a checkpoint runs itself; its
cache is not used.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from _cli import load_config, make_parser, run_tool, warn

if TYPE_CHECKING:
    from mmkd.analysis.gradients import LossGradient


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        '--checkpoint',
        help='weights of the student instead of the initial ones; also loads connectors if it was '
        'distilled with the same losses',
    )
    parser.add_argument(
        '--batches', type=int, default=3, help='number of batches, for the mean (default: 3)'
    )
    parser.add_argument('--batch-size', type=int, help="images per batch (default: the config's)")
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of batches and initial weights (default: 0)'
    )
    parser.add_argument('--json', metavar='FILE', help='write the numbers to a JSON file too')
    return parser.parse_args()


def gradients(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from mmengine.runner import set_random_seed

    from mmkd.analysis.gradients import measure_gradients
    from mmkd.analysis.run_start import build_distillation, with_all_active
    from mmkd.preflight import PlannedRun, require

    check_options(args)
    cfg = with_all_active(load_config(args, modes=()), args.config)
    require(PlannedRun(cfg, ('train',), path=args.config), warn)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    MMLogger.get_current_instance().setLevel('WARNING')  # mmengine logs each initialised weight
    set_random_seed(args.seed)
    distiller, _, batches = build_distillation(
        cfg, args.batches, args.batch_size, args.seed, args.checkpoint
    )
    found = measure_gradients(distiller, batches)
    print(table(found))
    if args.json:
        numbers = {name: dataclasses.asdict(gradient) for name, gradient in found.items()}
        for each in numbers.values():  # JSON has no NaN
            each.update({key: None for key in ('ratio', 'cosine') if math.isnan(each[key])})
        Path(args.json).write_text(json.dumps(numbers, indent=2) + '\n', encoding='utf-8')


def check_options(args: argparse.Namespace) -> None:
    """Reject invalid options before anything is built."""
    from mmkd.errors import ConfigError

    for name in ('batches', 'batch_size'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f'--{name.replace("_", "-")}: must be at least 1, got {value}')
    if args.launcher != 'none':
        raise ConfigError('--launcher: gradients runs in a single process; remove --launcher')
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise ConfigError(f'--json: no such folder: {Path(args.json).parent}; name another file')


def table(found: dict[str, LossGradient]) -> str:
    """The numbers as text."""
    modules = {name: max(12, len(name) + 2) for name in next(iter(found.values())).norms}
    first = max(map(len, found)) + 2
    names = ''.join(f'{name:>{width}}' for name, width in modules.items())
    lines = [f'{"":<{first}}{"value":>10}{names}{"ratio":>9}{"cosine":>9}']
    for name, gradient in found.items():
        norms = ''.join(f'{gradient.norms[it]:>{width}.4g}' for it, width in modules.items())
        numbers = f'{gradient.value:>10.4g}{norms}{gradient.ratio:>9.3f}{gradient.cosine:>9.2f}'
        lines.append(f'{name:<{first}}{numbers}')
    return '\n'.join(lines)


if __name__ == '__main__':
    run_tool(gradients, parse_args())
