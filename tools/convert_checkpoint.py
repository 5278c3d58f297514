"""Convert published backbone weights (DINO, DINOv2, MAE, ViTDet, torchvision) to the names of mmkd models.

The output is a plain ``state_dict`` checkpoint for ``init_cfg=dict(type='Pretrained', checkpoint=OUT)``. This
tool is optional: ``init_cfg=dict(type='ConvertedCheckpoint', source=SOURCE, checkpoint=IN)`` reads the
published file itself. docs/weights.md lists published weights with their addresses and licences.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from _cli import run_tool

# The keys of mmkd.converters.FORMATS, which cannot be imported for a help text (see _cli.py).
SOURCES = 'dino, dinov2, mae, torchvision-mobilenetv2, vitdet'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        'source', metavar='SOURCE', help=f'format of the published weights, one of: {SOURCES}'
    )
    parser.add_argument('checkpoint', metavar='IN', help='the published file, a path or a URL')
    parser.add_argument('out', metavar='OUT', type=Path, help='the file to write, e.g. NAME.pth')
    parser.add_argument(
        '--no-class-token',
        action='store_true',
        help='drop the class token and its position, for a backbone with class_token=False',
    )
    parser.add_argument(
        '--backbone-only',
        action='store_true',
        help='vitdet: write only the backbone, without the prefix backbone. (default: with the neck)',
    )
    parser.add_argument('--force', action='store_true', help='overwrite OUT if it exists')
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
        raise ConfigError(f'OUT: must be a file, got the folder {args.out}; name a file in it')
    if args.out.exists() and not args.force:
        raise ConfigError(f'OUT: {args.out} exists already; overwrite it with --force')
    if args.out.exists() and Path(args.checkpoint).exists() and args.out.samefile(args.checkpoint):
        raise ConfigError(f'OUT: {args.out} is the file to convert; name another file')
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
        raise ConfigError(
            f'OUT: {args.out} cannot be written ({error.strerror or error}); name another file'
        ) from error
    print(f'{args.out}: {len(state)} entries from {args.checkpoint}')


def _save(content: dict, path: Path) -> None:
    """Write a checkpoint completely or not at all, through a temporary file in the same folder."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=f'.{path.name}.', delete=False) as file:
        try:
            torch.save(content, file)
            file.close()
            # Permissions of a new file; temporary files are readable only by their owner.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(file.name, 0o666 & ~mask)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


if __name__ == '__main__':
    run_tool(convert_checkpoint, parse_args())
