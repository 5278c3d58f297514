"""Show how strongly each loss pulls at the student's weights: what loss_weight is to balance.

For a few batches of the config's training data, at the weights a training starts with (or --checkpoint):
each loss's value, the norm of its gradient at every module of the student, how large that is beside the
student's own losses' (ratio) and whether it points the same way (cosine), both at the weights that both
reach. Nothing is trained. All losses act, whatever their schedules; a teacher with a checkpoint is asked
itself, not its cache.
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
        help="weights of the student, in place of the training's first; connectors too if it was "
        'distilled with these losses',
    )
    parser.add_argument('--batches', type=int, default=3, help='to take the mean of (default: 3)')
    parser.add_argument('--batch-size', type=int, help="images a step (default: the config's)")
    parser.add_argument('--seed', type=int, default=0, help='of batches and weights (default: 0)')
    parser.add_argument('--json', metavar='FILE', help='write the numbers there too')
    return parser.parse_args()


def gradients(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from mmengine.runner import set_random_seed

    from mmkd.analysis.gradients import measure_gradients
    from mmkd.analysis.run_start import start_of, with_all_active
    from mmkd.preflight import PlannedRun, require

    check_options(args)
    cfg = with_all_active(load_config(args, modes=()), args.config)
    require(PlannedRun(cfg, ('train',), path=args.config), warn)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    MMLogger.get_current_instance().setLevel('WARNING')  # every weight's initialisation is logged
    set_random_seed(args.seed)
    distiller, _, batches = start_of(cfg, args.batches, args.batch_size, args.seed, args.checkpoint)
    found = measure_gradients(distiller, batches)
    print(table(found))
    if args.json:
        numbers = {name: dataclasses.asdict(gradient) for name, gradient in found.items()}
        for each in numbers.values():  # JSON has no NaN
            each.update({key: None for key in ('ratio', 'cosine') if math.isnan(each[key])})
        Path(args.json).write_text(json.dumps(numbers, indent=2) + '\n', encoding='utf-8')


def check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured, before anything is built."""
    from mmkd.errors import ConfigError

    for name in ('batches', 'batch_size'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f'--{name.replace("_", "-")} {value} is below 1')
    if args.launcher != 'none':
        raise ConfigError('one process looks at gradients; leave out --launcher')
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise ConfigError(f'--json {args.json}: there is no such folder')


def table(found: dict[str, LossGradient]) -> str:
    """The numbers to read."""
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
