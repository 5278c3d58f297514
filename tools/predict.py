"""Run a student on images; write each image with its boxes, and all predictions to a JSON file.

IMAGES are files and folders. DIR/images/ gets the images with boxes, DIR/predictions.json the predictions
with all scores in the format of COCO results.
"""

from __future__ import annotations

import argparse

from _cli import find_config, make_parser, read_config, run_tool


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint of the student, a file or a URL')
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='image files and folders')
    parser.add_argument('--out', metavar='DIR', required=True, help='the folder to write to')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='minimum score of drawn boxes (default: 0.3)'
    )
    parser.add_argument(
        '--ann-file', metavar='FILE', help='COCO file with the ids of images and categories to use'
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from mmengine.device import get_device
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from rich.progress import track

    from mmkd.checkpoints import allow_training_checkpoints
    from mmkd.deploy import find_images, predict
    from mmkd.errors import ConfigError
    from mmkd.preflight.files import check_checkpoint

    if not 0 <= args.score_thr <= 1:
        raise ConfigError(f'--score-thr: must be in [0, 1], got {args.score_thr}')
    images = find_images(args.images)
    cfg = read_config(find_config(args.config), args)
    check_checkpoint(args.checkpoint, 'CHECKPOINT')
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    MMLogger.get_current_instance().setLevel('ERROR')
    allow_training_checkpoints()
    found = predict(
        cfg,
        args.checkpoint,
        images,
        args.out,
        args.score_thr,
        args.ann_file,
        device=get_device(),
        progress=lambda each: track(each, 'images'),
    )
    print(f'{found.objects} predictions on {found.images} images: {found.results}')
    if found.unreadable:
        raise ConfigError(
            f'IMAGES: {len(found.unreadable)} of {len(images)} cannot be read: '
            f'{", ".join(found.unreadable[:3])}; the predictions for the others are written'
        )


if __name__ == '__main__':
    run_tool(main, parse_args())
