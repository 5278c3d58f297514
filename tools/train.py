"""Train a detector from a config, with or without distillation."""

from __future__ import annotations

import argparse

from _cli import build_runner, load_config, make_parser, run_tool


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the total batch size',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint (default: the latest in the work directory)',
    )
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    from mmengine.device import get_device

    from mmkd.errors import ConfigError
    from mmkd.preflight import PlannedRun, require
    from mmkd.preflight.files import check_checkpoint

    cfg = load_config(args, modes=('train', 'val'))
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        source = '--amp' if args.amp else 'optim_wrapper.type: AmpOptimWrapper'
        raise ConfigError(
            f'{source} needs a GPU, as mmengine has no mixed precision on the CPU; remove it'
        )
    scaled = cfg.get('auto_scale_lr') or {}
    if args.auto_scale_lr or scaled.get('enable'):
        if 'base_batch_size' not in scaled:
            source = '--auto-scale-lr' if args.auto_scale_lr else 'auto_scale_lr.enable'
            raise ConfigError(
                f'{source}: the config needs auto_scale_lr=dict(base_batch_size=…); add it'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from, '--resume' if args.resume else 'load_from')
        if args.resume:
            require(PlannedRun(cfg, ('train',)), only=('load_from',))
    build_runner(cfg).train()


if __name__ == '__main__':
    run_tool(train, parse_args())
