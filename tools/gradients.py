"""Show how strongly each loss pulls at the student's weights: what loss_weight is to balance.

For a few batches of the config's training data, at the weights a training starts with (or --checkpoint):
each loss's value, the norm of its gradient at every module of the student, how large that is beside the
student's own losses' (ratio) and whether it points the same way (cosine), both at the weights that it
shares with each of them. Nothing is trained. All losses act, whatever their schedules; a teacher with a
checkpoint is asked itself, not its cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from _cli import load_config, make_parser, run_tool, warn

if TYPE_CHECKING:
    from mmengine.config import Config

    from mmkd.analysis.gradients import LossGradient
    from mmkd.distillers import Distiller


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
    from mmengine.device import get_device
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from mmengine.runner import set_random_seed

    from mmkd.analysis.gradients import measure_gradients
    from mmkd.preflight import CHECKS, PlannedRun, require

    check_options(args)
    cfg = load_config(args, modes=())
    ask_teachers_themselves(cfg)
    # Every loss is measured, whatever its schedule.
    checked = [check.name for check in CHECKS if check.name != 'schedules']
    require(PlannedRun(cfg, ('train',), path=args.config), warn, only=checked)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    MMLogger.get_current_instance().setLevel('WARNING')  # every weight's initialisation is logged
    set_random_seed(args.seed)
    distiller, batches = build(cfg, args)
    found = measure_gradients(distiller.to(get_device()), batches)
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


def ask_teachers_themselves(cfg: Config) -> None:
    """Without their caches, which may not be written yet, where their weights are named; in place."""
    model = cfg.get('model') or {}
    for teacher in (model.get('teacher'), *(model.get('teachers') or {}).values()):
        if teacher and 'checkpoint' in teacher and 'cache' in teacher:
            teacher.cache = None


def build(cfg: Config, args: argparse.Namespace) -> tuple[Distiller, list[dict]]:
    """The distiller as a training starts it, but for schedules, and batches of its data."""
    from mmdet.registry import MODELS
    from mmengine.runner import Runner

    from mmkd.checkpoints import load_weights, read_checkpoint
    from mmkd.errors import ConfigError
    from mmkd.hooks import STATE

    if (cfg.get('model') or {}).get('type') != 'Distiller':
        raise ConfigError(f'{args.config} distils nothing: its model.type is not Distiller')
    for entry in filter(None, (cfg.model.get('losses') or {}).values()):
        entry.pop('schedule', None)
    loader = dict(cfg.train_dataloader, num_workers=0, persistent_workers=False)
    loader['batch_size'] = args.batch_size or loader['batch_size']
    loader = Runner.build_dataloader(loader, seed=args.seed)
    cfg.model.classes = cfg.model.get('classes') or loader.dataset.metainfo.get('classes')
    distiller = MODELS.build(cfg.model)
    distiller.init_weights()
    if args.checkpoint:
        where = f'--checkpoint {args.checkpoint}'
        content = read_checkpoint(args.checkpoint, where, 'give the file of a trained student')
        load_weights(distiller.student, content, where)
        connectors = content.get(STATE, {}).get('connectors', {})
        if connectors:
            try:
                distiller.load_connector_state(connectors)
            except ConfigError:
                print(f'{where} was trained with other losses: connectors are as at a start')
    distiller.prepare()
    for teacher in distiller.teachers.values():
        teacher.prepare_data(loader.dataset)
    return distiller, list(itertools.islice(loader, args.batches))


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
