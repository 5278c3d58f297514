"""Export a trained student to ONNX with preprocessing and NMS, and check it in ONNX Runtime.

DIR gets model.onnx, model.json with a description of input and output, and the student's config. Nothing is
written unless the boxes of ONNX Runtime match those of mmdet's predict. Needs the extra `export`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from _cli import find_config, make_parser, read_config, run_tool, warn

if TYPE_CHECKING:
    from mmkd.deploy.exporting import Exported


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint of the student, a file or a URL')
    parser.add_argument('--out', metavar='DIR', required=True, help='a new or empty folder')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='fixed size of a single image, px (default: any batch and image size)',
    )
    parser.add_argument(
        '--images',
        nargs='+',
        default=[],
        metavar='IMAGES',
        help='image files and folders for the comparison (default: the first test images, or random '
        'images without test data)',
    )
    parser.add_argument(
        '--evaluate', action='store_true', help='also compare mAP on the test data, to 0.1'
    )
    parser.add_argument('--teacher', action='store_true', help='time the teacher too')
    parser.add_argument(
        '--threads', type=int, help="number of threads of all runtimes (default: torch's)"
    )
    parser.add_argument(
        '--rounds', type=int, default=20, help='number of timed runs per runtime (default: 20)'
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import torch
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    from mmkd.deploy import find_images
    from mmkd.deploy.exporting import export
    from mmkd.errors import ConfigError

    for name, least in dict(rounds=1, threads=1).items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f'--{name}: must be at least {least}, got {value}')
    if args.size and min(args.size) < 32:
        raise ConfigError(f'--size: must be at least 32 px each, got {args.size}')
    if args.threads:
        torch.set_num_threads(args.threads)
    images = find_images(args.images) if args.images else []
    cfg = read_config(find_config(args.config), args)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    MMLogger.get_current_instance().setLevel('ERROR')
    found = export(
        cfg,
        args.checkpoint,
        args.out,
        images,
        size=tuple(args.size) if args.size else None,
        evaluated=args.evaluate,
        teacher=args.teacher,
        rounds=args.rounds,
    )
    report(found)


def report(found: Exported) -> None:
    """Print the result of an export."""
    import torch

    from mmkd.analysis.complexity import processor_name
    from mmkd.analysis.tables import DASH, markdown_table

    agreement = found.agreement
    print(
        f'{agreement.boxes} boxes agree with PyTorch on {found.checked_on}: within '
        f'{agreement.pixels:.2g} px, scores within {agreement.score:.2g}'
    )
    if not agreement.boxes:
        warn(
            '--images: the student detects nothing on these images, so no box was compared; name others'
        )
    if found.scores:
        scores = ', '.join(f'{100 * value:.1f} ({name})' for name, value in found.scores.items())
        print(f'mAP on the test data: {scores}')
    sizes = [
        f'{axis} fixed to {least}' if axis in found.file.fixed else f'{axis} from {least}'
        for axis, least in found.file.least.items()
    ]
    print(f'images: {", ".join(sizes)}')
    runtimes = list(dict.fromkeys(name for row in found.rows for name in row.ms))
    rows = [['', 'weights, MB', 'ONNX, MB', *(f'{name}, ms' for name in runtimes)]]
    for row in found.rows:
        values = [row.mb['PyTorch'], row.mb['ONNX'], *(row.ms.get(name) for name in runtimes)]
        rows.append([row.name, *(DASH if each is None else f'{each:.1f}' for each in values)])
    threads = torch.get_num_threads()
    print(
        f'\n{markdown_table(rows)}\n\nms: median time of one image; {processor_name()}, {threads} threads'
    )
    for row in found.rows:
        if row.note:
            print(row.note)
    print(found.folder)


if __name__ == '__main__':
    run_tool(main, parse_args())
