"""Draw the detections of several trained detectors on the same images, next to the ground truth.

Reads work directories of training runs: teacher, student, distilled student, or any others on one data set.
Selects the images where the detectors differ most, or the images of --images.
"""

from __future__ import annotations

import argparse

from _cli import add_run_options, run_tool

MAX_IMAGES = 50  # in a figure


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='compare.py', description=__doc__, allow_abbrev=False)
    add_run_options(parser, 'work_dirs/comparison.png')
    parser.add_argument(
        '--best', action='store_true', help='use the epoch with the highest mAP, not the last'
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        '--images',
        nargs='+',
        metavar='IMAGE',
        help='file names, paths or ids of images to show',
    )
    chosen.add_argument(
        '--most-different',
        type=int,
        default=4,
        metavar='N',
        help='show the N images with the largest difference of F1 between detectors (default: 4)',
    )
    parser.add_argument(
        '--teacher',
        action='store_true',
        help='add the teachers in the configs of distilled students',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        help='minimum score for all detectors (default: the score with the highest F1 of each)',
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from rich.progress import track

    from mmkd.analysis.comparison import compare, most_different
    from mmkd.analysis.outputs import check_output, write_files, write_json
    from mmkd.analysis.run_detectors import read_detectors
    from mmkd.checkpoints import allow_training_checkpoints
    from mmkd.errors import ConfigError
    from mmkd.visualization import find_indices

    if args.score_thr is not None and not 0 <= args.score_thr <= 1:
        raise ConfigError(f'--score-thr: must be in [0, 1], got {args.score_thr}')
    for option, number in (
        ('--most-different', args.most_different),
        ('--images', len(args.images or '1')),
    ):
        if not 1 <= number <= MAX_IMAGES:
            raise ConfigError(f'{option}: must be 1 to {MAX_IMAGES} images, got {number}')
    if not args.images and len(args.work_dirs) == 1 and not args.teacher:
        raise ConfigError(
            '--most-different: needs two detectors, got one; name another work directory, add --teacher, or '
            'select images with --images'
        )
    out = check_output(args.out, '--out', '.png')
    json = check_output(args.json, '--json', '.json') if args.json else None
    init_default_scope('mmdet')
    MMLogger.get_current_instance().setLevel('ERROR')
    allow_training_checkpoints()
    detectors = read_detectors(args.work_dirs, args.names, args.best, args.teacher)
    for each in detectors:
        each.score_thr = each.score_thr if args.score_thr is None else args.score_thr
    if args.images:
        indices = find_indices(detectors[0].dataset, args.images, '--images')
        found = compare(detectors, indices)
    else:
        count = args.most_different
        found = most_different(detectors, count, lambda each: track(each, 'images'))
    figure = found.draw()
    files = {out: figure.savefig}
    if json:
        files[json] = write_json(found.numbers())
    write_files(files)
    print('\n'.join(lines(found.numbers())))
    print(f'\n{out}')


def lines(numbers: dict) -> list[str]:
    """F1 of each detector on each image of the figure, as a table."""
    from mmkd.analysis.tables import markdown_table

    names = list(numbers['detectors'])
    rows = [['F1 in %', 'objects', *names]]
    for each in numbers['chosen']:
        scores = [f'{100 * each["detectors"][name]["f1"]:.0f}' for name in names]
        rows.append([each['image'].rpartition('/')[2], str(each['objects']), *scores])
    thresholds = [f'{numbers["detectors"][name]["score_thr"]:.2f}' for name in names]
    rows.append(['score at least', '', *thresholds])
    return markdown_table(rows).splitlines()


if __name__ == '__main__':
    run_tool(main, parse_args())
