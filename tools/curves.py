"""Draw the training curves of runs: the detector's own losses, distillation losses, mAP.

Reads work directories of finished or unfinished training runs, also of MMDetection's own tools/train.py.
"""

from __future__ import annotations

import argparse

from _cli import add_run_options, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='curves.py', description=__doc__, allow_abbrev=False)
    add_run_options(parser, 'work_dirs/curves.png')
    parser.add_argument(
        '--metric',
        metavar='NAME',
        help='validation metric to draw, by its name in the log, such as coco/bbox_mAP_50 '
        '(default: coco/bbox_mAP)',
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from mmkd.analysis.curves import curves_of, draw_curves, metric_of
    from mmkd.analysis.outputs import check_output, write_files, write_json
    from mmkd.analysis.work_dir import read_work_dir, titles_of

    out = check_output(args.out, '--out', '.png')
    json = check_output(args.json, '--json', '.json') if args.json else None
    titles = titles_of(args.work_dirs, args.names)
    runs = [
        curves_of(read_work_dir(path), title)
        for path, title in zip(args.work_dirs, titles, strict=True)
    ]
    metric = metric_of(runs, args.metric)
    figure = draw_curves(runs, metric)
    files = {out: figure.savefig}
    if json:
        files[json] = write_json({run.title: run.numbers(metric) for run in runs})
    write_files(files)
    print(out)


if __name__ == '__main__':
    run_tool(main, parse_args())
