"""Measure the cost of a distillation step relative to the student's step, with a live and a cached teacher.

Runs tools/benchmark.py several times for one pair of each kind, on random images and weights, and writes the
table into docs/recipes/costs.md. Each measurement is a line of benchmarks/costs.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'tools'), str(HERE)]

from comparing import publish  # noqa: E402
from conditions import commit, device_name, versions  # noqa: E402

from _cli import run_tool  # noqa: E402

CONFIGS = HERE.parent / 'configs'
ABLATIONS, METHODS = CONFIGS / 'ablations', CONFIGS / 'methods'
# Per pair: title and config for the live teacher, title and config for the cached teacher. The configs differ
# if a cache does not support the live one: it has no outputs for the student's proposals, and none of the
# teacher's head for the student's feature maps.
PAIRS: list[tuple[str, Path, str, Path]] = [
    (
        "Faster R-CNN R50 to MobileNetV2, RoI and RPN, the student's proposals",
        ABLATIONS / 'faster-rcnn_r50_to_mobilenetv2_voc2012_rpn.py',
        "the teacher's proposals",
        ABLATIONS / 'faster-rcnn_r50_to_mobilenetv2_voc2012_rpn_cached.py',
    ),
    (
        'Faster R-CNN R101 to R50, PKD',
        METHODS / 'pkd' / 'pkd_faster-rcnn_r101_to_r50_2x_coco.py',
        'the same',
        METHODS / 'pkd' / 'pkd_faster-rcnn_r101_to_r50_2x_coco.py',
    ),
    (
        'GFL R101 to R50, CrossKD with LD',
        METHODS / 'crosskd' / 'crosskd_gfl_r101_to_r50_1x_coco.py',
        'LD',
        METHODS / 'ld' / 'ld_gfl_r101_to_r50_1x_coco.py',
    ),
    (
        'DETR R50 to R18, matched logits of six layers',
        CONFIGS / 'detr_r50_to_r18_coco.py',
        'the same',
        CONFIGS / 'detr_r50_to_r18_coco.py',
    ),
]
LINES = HERE / 'costs.jsonl'
PAGE = HERE.parent / 'docs' / 'recipes' / 'costs.md'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument('--size', type=int, default=320, help='side of the images (default: 320)')
    parser.add_argument('--batch-size', type=int, default=2, help='images per step (default: 2)')
    parser.add_argument('--iterations', type=int, default=10, help='rounds (default: 10)')
    parser.add_argument(
        '--repeats', type=int, default=3, help='measurements per pair and teacher (default: 3)'
    )
    parser.add_argument('--pairs', type=int, nargs='+', help='only these pairs, counted from 0')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--table', action='store_true', help='only print the table of measurements')
    parser.add_argument('--results', type=Path, default=LINES, help='the file of measurements')
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='default: cuda if there is a GPU')
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    parser.set_defaults(gpus=None, local_rank=0)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    setting = dict(size=args.size, batch_size=args.batch_size, amp=args.amp, device=device_name())
    chosen = [PAIRS[index] for index in args.pairs] if args.pairs else PAIRS
    for _ in range(0 if args.table else args.repeats):
        # The pairs take turns: a slow phase of the machine affects all of them.
        for title, config, cached_title, cached_config in chosen:
            measure(args, setting, title, config, cached=False)
            measure(args, setting, f'{title}: {cached_title}', cached_config, cached=True)
    lines = [json.loads(line) for line in args.results.read_text(encoding='utf-8').splitlines()]
    text = table(lines, setting)
    print(text)
    if args.results == LINES:
        publish('costs', text, PAGE)


def measure(
    args: argparse.Namespace, setting: dict[str, Any], title: str, config: Path, cached: bool
) -> None:
    """Measure one pair in its own process and append the measurement to the file."""
    from mmkd.errors import UserError

    with TemporaryDirectory() as folder:
        out = Path(folder) / 'numbers.json'
        command = [sys.executable, str(HERE.parent / 'tools' / 'benchmark.py'), str(config)]
        command += ['--random-teacher', '--size', str(args.size), '--json', str(out)]
        command += ['--batch-size', str(args.batch_size), '--iterations', str(args.iterations)]
        command += ['--cached'] * cached + ['--amp'] * args.amp
        command += ['--device', args.device] if args.device else []
        # Threads that spin while they wait would slow down the measured ones.
        env = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ['no error output'])[-1]
            raise UserError(f'{config.name}: {last}')
        numbers = json.loads(out.read_text())
    del numbers['arguments']
    line = dict(pair=title, cached=cached, **setting, git_commit=commit(), versions=versions())
    with open(args.results, 'a', encoding='utf-8') as file:
        file.write(json.dumps(line | dict(numbers=rounded(numbers))) + '\n')
    ratio = numbers['step_ratio' if cached else 'overhead_ratio']
    print(f'{title}, {"cached" if cached else "live"}: {ratio:.3f}', flush=True)


def rounded(value: Any) -> Any:
    """Round all numbers in nested dicts and lists to five decimals."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


def table(lines: list[dict[str, Any]], setting: dict[str, Any]) -> str:
    """Medians of all measurements with this size, batch size, precision and device; one row per pair."""
    from mmkd.analysis.tables import markdown_table

    rows = [
        [
            *('pair', 'teacher', 'student step, ms', 'teacher pass, ms', 'distillation step, ms'),
            *('over student and teacher', 'over student', 'peak of memory over what is needed'),
            'measured',
        ]
    ]
    titles = [
        (name, cached)
        for title, _, other, _ in PAIRS
        for name, cached in ((title, False), (f'{title}: {other}', True))
    ]
    for title, cached in titles:
        found = [
            line['numbers']
            for line in lines
            if (line['pair'], line['cached']) == (title, cached)
            and all(line[key] == value for key, value in setting.items())
        ]
        if not found:
            continue

        def median(key: str, each: list[dict] = found) -> float:
            return statistics.median(numbers[key] for numbers in each)

        times = [
            f'{1000 * median(f"{name}_s"):.0f}'
            for name in ('student_step', 'teacher_pass', 'kd_step')
        ]
        ratios = [f'{median(key):.3f}' for key in ('overhead_ratio', 'step_ratio', 'memory_ratio')]
        name = title.split(': ')[-1] if cached else title
        cells = [name, 'cached' if cached else 'live', *times, *ratios, str(len(found))]
        rows.append(cells)
    note = (
        f'{setting["batch_size"]} random images of {setting["size"]} px, {setting["device"]}'
        f'{", automatic mixed precision" if setting["amp"] else ""}. Medians.'
    )
    return f'{markdown_table(rows, left=2)}\n\n{note}'


if __name__ == '__main__':
    run_tool(main, parse_args())
