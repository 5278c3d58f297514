"""What a distillation step costs beside the student's, with the teacher live and from a cache.

Runs tools/benchmark.py for one pair of each kind, several times over, on random images and weights, and
puts the table into docs/recipes/costs.md. Each measurement is a line of benchmarks/costs.jsonl.
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
# Of each pair: how it is called, its config, and what its cached form is called and measured by. A
# cache knows neither the student's proposals nor what the teacher's head makes of the student's maps.
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
    parser.add_argument('--batch-size', type=int, default=2, help='images a step (default: 2)')
    parser.add_argument('--iterations', type=int, default=10, help='rounds (default: 10)')
    parser.add_argument('--repeats', type=int, default=3, help='measurements of each (default: 3)')
    parser.add_argument('--pairs', type=int, nargs='+', help='only these, counted from 0')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--table', action='store_true', help='measure nothing, show what is there')
    parser.add_argument('--results', type=Path, default=LINES, help='the file of measurements')
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='default: cuda where there is one'
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    parser.set_defaults(gpus=None, local_rank=0)
    return parser.parse_args()


def costs(args: argparse.Namespace) -> None:
    scene = dict(size=args.size, batch_size=args.batch_size, amp=args.amp, device=device_name())
    chosen = [PAIRS[index] for index in args.pairs] if args.pairs else PAIRS
    for _ in range(0 if args.table else args.repeats):
        # Each pair in turn, so that a slow quarter of an hour does not fall on one of them.
        for title, config, cached_title, cached_config in chosen:
            measure(args, scene, title, config, cached=False)
            measure(args, scene, f'{title}: {cached_title}', cached_config, cached=True)
    lines = [json.loads(line) for line in args.results.read_text(encoding='utf-8').splitlines()]
    text = table(lines, scene)
    print(text)
    if args.results == LINES:
        publish('costs', text, PAGE)


def measure(
    args: argparse.Namespace, scene: dict[str, Any], title: str, config: Path, cached: bool
) -> None:
    """One measurement, in a process of its own, appended to the file."""
    from mmkd.errors import UserError

    with TemporaryDirectory() as folder:
        out = Path(folder) / 'numbers.json'
        command = [sys.executable, str(HERE.parent / 'tools' / 'benchmark.py'), str(config)]
        command += ['--random-teacher', '--size', str(args.size), '--json', str(out)]
        command += ['--batch-size', str(args.batch_size), '--iterations', str(args.iterations)]
        command += ['--cached'] * cached + ['--amp'] * args.amp
        command += ['--device', args.device] if args.device else []
        # Threads that spin while they wait would take from the others what is measured.
        env = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ['it says nothing'])[-1]
            raise UserError(f'{config.name}: {last}')
        numbers = json.loads(out.read_text())
    del numbers['arguments']
    line = dict(pair=title, cached=cached, **scene, git_commit=commit(), versions=versions())
    with open(args.results, 'a', encoding='utf-8') as file:
        file.write(json.dumps(line | dict(numbers=rounded(numbers))) + '\n')
    ratio = numbers['step_ratio' if cached else 'overhead_ratio']
    print(f'{title}, {"cached" if cached else "live"}: {ratio:.3f}', flush=True)


def rounded(value: Any) -> Any:
    """Numbers with five digits after the point."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


def table(lines: list[dict[str, Any]], scene: dict[str, Any]) -> str:
    """Medians of all measurements of a scene, one row per pair."""
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
            and all(line[key] == value for key, value in scene.items())
        ]
        if not found:
            continue

        def middle(key: str, each: list[dict] = found) -> float:
            return statistics.median(numbers[key] for numbers in each)

        times = [
            f'{1000 * middle(f"{name}_s"):.0f}'
            for name in ('student_step', 'teacher_pass', 'kd_step')
        ]
        ratios = [f'{middle(key):.3f}' for key in ('overhead_ratio', 'step_ratio', 'memory_ratio')]
        name = title.split(': ')[-1] if cached else title
        cells = [name, 'cached' if cached else 'live', *times, *ratios, str(len(found))]
        rows.append(cells)
    note = (
        f'{scene["batch_size"]} random images of {scene["size"]} px, {scene["device"]}'
        f'{", automatic mixed precision" if scene["amp"] else ""}. Medians.'
    )
    return f'{markdown_table(rows, left=2)}\n\n{note}'


if __name__ == '__main__':
    run_tool(costs, parse_args())
