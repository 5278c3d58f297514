"""Show the kinds of errors of detectors, and how much AP each costs (TIDE), also by object size.

Reads work directories and runs their detectors on the validation images. With --ann-file, reads result files
in COCO format instead, from CocoMetric (outfile_prefix) or predict.
"""

from __future__ import annotations

import argparse

from _cli import add_run_options, run_tool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='errors.py', description=__doc__, allow_abbrev=False)
    add_run_options(parser, 'work_dirs/errors.png')
    parser.add_argument(
        '--best', action='store_true', help='use the epoch with the highest mAP, not the last'
    )
    parser.add_argument(
        '--teacher',
        action='store_true',
        help='add the teachers in the configs of distilled students',
    )
    parser.add_argument(
        '--ann-file',
        metavar='FILE',
        help='ground truth in COCO format; WORK_DIRs are then result files',
    )
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='CLASS',
        help='with --ann-file: classes to evaluate (default: all)',
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    from mmkd.analysis.error_figure import draw_errors, error_table, size_table
    from mmkd.analysis.outputs import check_output, write_files, write_json
    from mmkd.checkpoints import allow_training_checkpoints
    from mmkd.errors import ConfigError

    out = check_output(args.out, '--out', '.png')
    json = check_output(args.json, '--json', '.json') if args.json else None
    if args.classes and not args.ann_file:
        raise ConfigError(
            '--classes: needs --ann-file, as the config of a run has its own classes; remove --classes'
        )
    if args.ann_file and (args.teacher or args.best):
        raise ConfigError(
            '--ann-file: cannot be combined with --teacher or --best, which need runs; remove them'
        )
    init_default_scope('mmdet')
    MMLogger.get_current_instance().setLevel('ERROR')
    allow_training_checkpoints()
    found = errors_in_files(args) if args.ann_file else errors_of_runs(args)
    numbers = {name: errors.numbers() for name, errors in found.items()}
    figure = draw_errors(numbers)
    files = {out: figure.savefig}
    if json:
        files[json] = write_json(numbers)
    write_files(files)
    print(f'{error_table(numbers)}\n\n{size_table(numbers)}\n\n{out}')


def errors_in_files(args: argparse.Namespace) -> dict:
    """The errors in result files, by title."""
    from mmkd.analysis.coco_results import read_results, read_truth
    from mmkd.analysis.error_kinds import find_errors
    from mmkd.analysis.work_dir import titles_of

    truth = read_truth(args.ann_file, args.classes)
    titles = titles_of(args.work_dirs, args.names)
    results = [read_results(path, truth) for path in args.work_dirs]
    return {name: find_errors(truth, each) for name, each in zip(titles, results, strict=True)}


def errors_of_runs(args: argparse.Namespace) -> dict:
    """The errors of the detectors of work directories, by title."""
    from rich.progress import track

    from mmkd.analysis.coco_results import results_of, truth_of
    from mmkd.analysis.error_kinds import find_errors
    from mmkd.analysis.run_detectors import read_detectors

    detectors = read_detectors(args.work_dirs, args.names, args.best, args.teacher)
    truth = truth_of(detectors[0].dataset)
    for index in track(range(len(truth.images)), 'images'):
        for each in detectors:
            each.detections(index)
    return {
        each.name: find_errors(truth, results_of(each.found.values(), truth)) for each in detectors
    }


if __name__ == '__main__':
    run_tool(main, parse_args())
