"""Rewrite public backbone weights (DINO, DINOv2, MAE, ViTDet, torchvision) by the names used here.

Public weights: the file that is written is a plain ``state_dict`` checkpoint, which
``init_cfg=dict(type='Pretrained', checkpoint=OUT)`` reads. Without this tool
``init_cfg=dict(type='ConvertedCheckpoint', source=SOURCE, checkpoint=IN)`` starts from the published file
itself. docs/weights.md lists what is published where and under which licence.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from _cli import run_tool

# As mmkd.converters.FORMATS, which cannot be imported for a help text (see _cli.py).
SOURCES = 'dino, dinov2, mae, torchvision-mobilenetv2, vitdet'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('source', metavar='SOURCE', help=f'where the weights are from: {SOURCES}')
    parser.add_argument('checkpoint', metavar='IN', help='the published file, a path or a URL')
    parser.add_argument('out', metavar='OUT', type=Path, help='the file to write, e.g. NAME.pth')
    parser.add_argument(
        '--no-class-token',
        action='store_true',
        help='leave out the class token and its position, for a backbone with class_token=False',
    )
    parser.add_argument(
        '--backbone-only',
        action='store_true',
        help="of vitdet the backbone alone, by a backbone's own names; else backbone.* and neck.*",
    )
    parser.add_argument('--force', action='store_true', help='overwrite OUT if it is there')
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    parser.set_defaults(device='cpu', gpus=None, local_rank=0)
    return parser.parse_args()


def convert_checkpoint(args: argparse.Namespace) -> None:
    import mmkd
    from mmkd.converters import convert, read_weights
    from mmkd.converters.convert import find_format
    from mmkd.errors import ConfigError

    find_format(args.source)  # before a download
    if args.out.is_dir():
        raise ConfigError(f'{args.out} is a folder; name the file to write')
    if args.out.exists() and not args.force:
        raise ConfigError(f'{args.out} is there already; overwrite it with --force')
    if args.out.exists() and Path(args.checkpoint).exists() and args.out.samefile(args.checkpoint):
        raise ConfigError(f'{args.out} is the file to convert; write to another')
    state = convert(
        args.source,
        read_weights(args.checkpoint, args.checkpoint, 'name a file or a URL'),
        class_token=not args.no_class_token,
        backbone_only=args.backbone_only,
        where=args.checkpoint,
    )
    meta = dict(mmkd_version=mmkd.__version__, source=args.source, converted=args.checkpoint)
    try:
        _save(dict(state_dict=state, meta=meta), args.out)
    except OSError as error:
        raise ConfigError(f'{args.out} cannot be written: {error.strerror or error}') from error
    print(f'{args.out}: {len(state)} entries from {args.checkpoint}')


def _save(content: dict, path: Path) -> None:
    """Whole or not at all: written beside ``path``, then moved there."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=f'.{path.name}.', delete=False) as file:
        try:
            torch.save(content, file)
            file.close()
            # As any new file, where temporary ones are the owner's alone.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(file.name, 0o666 & ~mask)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


if __name__ == '__main__':
    run_tool(convert_checkpoint, parse_args())
