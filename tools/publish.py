"""Write a trained student for others to use: plain config, weights, model card.

Weights are written for mmengine (.pth) and as .safetensors, with the first digits of their SHA-256 in the
file name. mmdet's DetInferencer runs the model without mmkd, unless the student has modules of mmkd.
"""

from __future__ import annotations

import argparse

from _cli import find_config, make_parser, read_config, run_tool, warn


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint of the student, a file or a URL')
    parser.add_argument('--out', metavar='DIR', required=True, help='a new or empty folder')
    parser.add_argument('--name', help='name of the files (default: the name of the config)')
    parser.add_argument(
        '--license', default='', metavar='SPDX', help='licence of the weights, an SPDX identifier'
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    from mmkd.deploy import publish
    from mmkd.errors import ConfigError

    path = find_config(args.config)
    cfg = read_config(path, args)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    MMLogger.get_current_instance().setLevel('ERROR')
    name = args.name or path.stem
    if '/' in name or name.startswith('.'):
        raise ConfigError(f'--name: must be a file name without folder, got {name!r}')
    if not args.license:
        warn('--license: not given, so the model card has "unknown"; name an SPDX identifier')
    found = publish(cfg, args.checkpoint, args.out, name, args.license)
    for file in (found.config, found.weights, found.safetensors, found.card):
        print(file)


if __name__ == '__main__':
    run_tool(main, parse_args())
