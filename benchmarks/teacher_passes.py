"""Time the teacher's forward pass of a distillation config, in full and in half precision.

The variants take turns in one process: other work on the machine slows all of them. Each pass includes the
conversion of the recorded outputs to float32.
"""

from __future__ import annotations

import argparse
import copy
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'tools')]

from benchmark import build, check_options  # noqa: E402

from _cli import load_config, make_parser, run_tool  # noqa: E402

if TYPE_CHECKING:
    from mmkd.distillers.step import TeacherPass

VARIANTS: dict[str, dict[str, Any]] = {
    'plain': {},
    'bfloat16': dict(amp='bfloat16'),
    'float16': dict(amp='float16'),
}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('--batch-size', type=int, help="images per step (default: the config's)")
    parser.add_argument(
        '--size', type=int, nargs='+', metavar='PX', help='size of the random images'
    )
    parser.add_argument('--iterations', type=int, default=10, help='measured rounds (default: 10)')
    parser.add_argument('--warmup', type=int, default=3, help='warm-up rounds (default: 3)')
    parser.add_argument(
        '--threads', type=int, help="threads of torch on the CPU (default: torch's)"
    )
    parser.add_argument(
        '--variants',
        nargs='+',
        choices=list(VARIANTS),
        help='variants to time, in addition to plain',
    )
    parser.set_defaults(data=False, amp=False, json=None, random_teacher=True, cached=False)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from mmengine.device import get_device
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    from mmkd.analysis.training_cost import _peak_bytes, _seconds
    from mmkd.errors import ConfigError

    check_options(args)
    cfg = load_config(args, modes=())
    if not cfg.model.get('teacher') or cfg.model.get('teachers'):
        raise ConfigError(
            f'{args.config}: must have exactly one teacher; this script times its forward pass'
        )
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    MMLogger.get_current_instance().setLevel('WARNING')
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(get_device())
    names = args.variants or [n for n in VARIANTS if n != 'float16' or device.type == 'cuda']
    names = ['plain', *(name for name in names if name != 'plain')]
    passes: dict[str, TeacherPass] = {}
    for name in names:
        own = copy.deepcopy(cfg)
        own.model.teacher.update(VARIANTS[name])
        torch.manual_seed(0)  # the same random teacher each time
        with TemporaryDirectory() as folder:
            distiller, (batch,) = build(own, args, folder)
        distiller = distiller.to(device).train()
        record = distiller._recorders_of(tuple(distiller.entries))
        (passes[name],) = record.passes
        if name == 'plain':
            data = distiller.data_preprocessor(batch, True)
            student, preprocessor = record.student, distiller.data_preprocessor
            with torch.no_grad(), student:
                distiller.student(**data, mode='loss')

    def run(each: TeacherPass) -> None:
        each.run_teacher(**data, preprocessor=preprocessor, student=student)
        for source in each.recorder.sources:
            each.recorder[source]

    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(args.warmup + args.iterations):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            seconds[name].append(_seconds(device, partial(run, passes[name])))
    print('| teacher | ms | ratio to plain (quartiles) | peak MB | difference |')
    print('|---|---:|---:|---:|---:|')
    times = {name: np.array(each[args.warmup :]) for name, each in seconds.items()}
    for name in names:
        low, middle, high = np.quantile(times[name] / times['plain'], (0.25, 0.5, 0.75))
        ratio = f'{middle:.2f} ({low:.2f} to {high:.2f})' if name != 'plain' else '1'
        peak = _peak_bytes(device, partial(run, passes[name])) / 1e6
        print(
            f'| {name} | {1000 * np.median(times[name]):.0f} | {ratio} | {peak:.0f} | '
            f'{difference(passes[name], passes["plain"]):.1g} |'
        )


def difference(variant: TeacherPass, plain: TeacherPass) -> float:
    """The largest relative difference (in norm) between the recorded outputs of two passes."""
    from mmkd.nested import map_tensors

    differences: list[float] = []
    for source in plain.recorder.sources:
        sides: list[list] = [[], []]
        for side, each in zip(sides, (variant, plain), strict=True):
            map_tensors(lambda value, side=side: side.append(value) or value, each.recorder[source])
        differences += [((a - b).norm() / b.norm()).item() for a, b in zip(*sides, strict=True)]
    return max(differences)


if __name__ == '__main__':
    arguments = parse_args()
    run_tool(main, arguments)
