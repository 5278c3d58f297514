"""Evaluate a checkpoint with a config; a distilled student needs no teacher."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from _cli import build_runner, load_config, make_parser, run_tool

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', help='checkpoint, a file or a URL')
    parser.add_argument(
        '--f1', action='store_true', help='add F1 to every COCO metric of the config'
    )
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions to a pickle file')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument(
        '--show-dir', help='write images with predictions to work_dir/<time>/SHOW_DIR'
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds each image is shown')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation: merge boxes of both flips'
    )
    return parser.parse_args()


def test(args: argparse.Namespace) -> None:
    from mmdet.evaluation import DumpDetResults

    from mmkd.errors import ConfigError
    from mmkd.preflight.files import check_checkpoint

    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out: must be a file that ends in .pkl, got {args.out}')
    check_checkpoint(args.checkpoint, 'CHECKPOINT')
    cfg = load_config(args, modes=('test',))
    require_weights(cfg, args.checkpoint)
    cfg.load_from = args.checkpoint
    if args.f1:
        from mmkd.f1_metric import with_f1

        cfg.test_evaluator = with_f1(cfg.test_evaluator)
    if args.show or args.show_dir:
        from mmdet.engine.hooks.utils import trigger_visualization_hook

        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        use_flip_tta(cfg)
    runner = build_runner(cfg)
    if args.out:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()


def require_weights(cfg: Config, checkpoint: str) -> None:
    """Refuse a checkpoint that lacks weights of the detector: mmengine would test random ones."""
    from mmkd.checkpoints import load_weights, read_checkpoint
    from mmkd.preflight import PlannedRun

    if 'runner_type' in cfg:  # its strategies write checkpoints of their own form
        return
    where = f'checkpoint {checkpoint}'
    detector = PlannedRun(cfg, ('test',)).detector
    load_weights(detector, read_checkpoint(checkpoint, where), where, allow_left_over=True)


def use_flip_tta(cfg: Config) -> None:
    """Merge the boxes of the image and its mirror image, unless the config sets ``tta_pipeline``."""
    cfg.setdefault(
        'tta_model',
        dict(
            type='DetTTAModel',
            # Merge the boxes of both views with the NMS settings of mmdet's Faster R-CNN.
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        ),
    )
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'tta_pipeline' not in cfg:
        pack = dict(dataset.pipeline[-1])
        keys = pack.get(
            'meta_keys', ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        )
        pack['meta_keys'] = (*keys, 'flip', 'flip_direction')
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        cfg.tta_pipeline = [
            *dataset.pipeline[:-1],
            dict(type='TestTimeAug', transforms=[flips, [pack]]),
        ]
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


if __name__ == '__main__':
    run_tool(test, parse_args())
