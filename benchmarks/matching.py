"""Time the Hungarian matching of a step: all layers and images at once, and each by itself.

Costs of all decoder layers and images go to the host in one piece, and their assignments are solved side
by side. The other way is that of mmdet's ``HungarianAssigner``: costs, transfer and assignment of one
image after the other. Both get the same random predictions, take turns, and must give the same pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'tools')]

from _cli import run_tool  # noqa: E402

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmkd.alignments import HungarianQueryAlignment, Step

PHASES = ('costs', 'transfer', 'assignment')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='matching.py', description=__doc__, allow_abbrev=False)
    parser.add_argument('--queries', type=int, nargs='+', default=[100, 300], metavar='N')
    parser.add_argument('--batch-size', type=int, default=16, help='images (default: 16)')
    parser.add_argument('--layers', type=int, default=6, help='of the decoder (default: 6)')
    parser.add_argument('--classes', type=int, default=80, help='without no-object (default: 80)')
    parser.add_argument('--iterations', type=int, default=10, help='rounds (default: 10)')
    parser.add_argument('--warmup', type=int, default=3, help='rounds before them (default: 3)')
    parser.add_argument('--threads', type=int, help="of torch on the CPU (default: torch's)")
    parser.add_argument('--json', metavar='FILE', help='write the numbers there too')
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='default: cuda where there is one'
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    parser.set_defaults(gpus=None, local_rank=0, launcher='none')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import torch
    from mmengine.device import get_device

    from mmkd.errors import ConfigError

    for name in ('batch_size', 'layers', 'classes', 'iterations', 'threads'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f'--{name.replace("_", "-")} {value} is below 1')
    if min(args.queries) < 1 or args.warmup < 0:
        raise ConfigError('--queries must be at least 1 and --warmup at least 0')
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise ConfigError(f'--json {args.json}: there is no such folder')
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(get_device())
    print('| queries | costs, ms | transfer | assignment | together | one by one | ratio |')
    print('|---:|---:|---:|---:|---:|---:|---:|')
    results = []
    for queries in args.queries:
        results.append(dict(queries=queries, **measure(args, queries, device)))
        print(row(results[-1]))
    if args.json:
        where = dict(device=str(device), threads=torch.get_num_threads(), torch=torch.__version__)
        numbers = dict(where, results=results, arguments=vars(args))
        Path(args.json).write_text(json.dumps(numbers, indent=2) + '\n', encoding='utf-8')


def measure(args: argparse.Namespace, queries: int, device: torch.device) -> dict[str, Any]:
    """Quartiles over rounds of the seconds of each phase, of both ways and of their ratio."""
    import numpy as np
    import torch

    from mmkd.analysis.training_cost import _seconds

    alignment, step = problem(args, queries, device)
    ways: dict[str, Callable] = dict(together=together, one_by_one=one_by_one)
    seconds = {way: {phase: [] for phase in PHASES} for way in ways}
    for index in range(args.warmup + args.iterations):
        pairs = []
        for way in sorted(ways, reverse=index % 2 == 0):
            taken = dict.fromkeys(PHASES, 0.0)

            def clock(phase: str, function: Callable[[], Any], taken: dict = taken) -> Any:
                result = []
                taken[phase] += _seconds(device, lambda: result.append(function()))
                return result[0]

            pairs.append(ways[way](alignment, step, clock))
            for phase in PHASES if index >= args.warmup else ():
                seconds[way][phase].append(taken[phase])
        if not torch.equal(*pairs):
            raise RuntimeError('the two ways give different pairs')

    def quartiles(values: Any) -> list[float]:
        return np.quantile(values, (0.25, 0.5, 0.75)).tolist()

    sums = {way: np.sum(list(phases.values()), 0) for way, phases in seconds.items()}
    numbers: dict[str, Any] = {
        way: {phase: quartiles(each) for phase, each in phases.items()}
        | {'all': quartiles(sums[way])}
        for way, phases in seconds.items()
    }
    return numbers | dict(ratio=quartiles(sums['one_by_one'] / sums['together']))


def problem(
    args: argparse.Namespace, queries: int, device: torch.device
) -> tuple[HungarianQueryAlignment, Step]:
    """The alignment of two DETRs, and a step with random predictions of theirs."""
    import torch
    from mmdet.registry import MODELS
    from mmengine.hub import get_config
    from mmengine.registry import init_default_scope

    from mmkd.alignments import ClassMap, HungarianQueryAlignment, Step
    from mmkd.alignments.queries import HEAD

    init_default_scope('mmdet')
    config = get_config('mmdet::detr/detr_r50_8xb2-150e_coco.py').model
    config.num_queries = queries
    config.decoder.num_layers = args.layers
    config.bbox_head.num_classes = args.classes
    config.backbone.init_cfg = None
    model = MODELS.build(config)  # nothing of it runs
    draw = torch.Generator().manual_seed(0)
    shape = (args.layers, args.batch_size, queries)

    def outputs() -> dict[Any, tuple[Tensor, Tensor]]:
        scores = 2 * torch.randn(*shape, args.classes + 1, generator=draw)
        boxes = 0.2 + 0.5 * torch.rand(*shape, 4, generator=draw)
        return {HEAD: (scores.to(device), boxes.to(device))}

    names = [f'class {index}' for index in range(args.classes)]
    step = Step([], model, model, outputs(), outputs(), ClassMap(names, names))
    alignment = HungarianQueryAlignment()
    alignment.check(model, model, {})
    return alignment, step


def together(alignment: HungarianQueryAlignment, step: Step, clock: Callable) -> Tensor:
    """Pairs as a training step makes them: the student's query of each of the teacher's."""
    import torch

    from mmkd.alignments.query_matching import assign, costs

    found = clock('costs', lambda: costs(alignment.candidates(step)[0], alignment.cost_weights))
    cost = clock('transfer', found.cpu)
    columns = clock('assignment', lambda: assign(cost.numpy()))
    return clock('transfer', lambda: torch.from_numpy(columns).to(found.device))


def one_by_one(alignment: HungarianQueryAlignment, step: Step, clock: Callable) -> Tensor:
    """The same, each image of each layer by itself."""
    import torch
    from scipy.optimize import linear_sum_assignment

    from mmkd.alignments.query_matching import layer_costs

    candidates = clock('costs', lambda: alignment.candidates(step)[0])
    device = candidates.p.device
    layers = []
    for layer in zip(*candidates, strict=True):
        images = []
        for image in zip(*layer, strict=True):
            costs = clock('costs', partial(layer_costs, *image, alignment.cost_weights))
            cost = clock('transfer', costs.cpu).numpy()
            _, columns = clock('assignment', partial(linear_sum_assignment, cost))
            images.append(clock('transfer', partial(torch.from_numpy(columns).to, device)))
        layers.append(torch.stack(images))
    return torch.stack(layers)


def row(numbers: dict[str, Any]) -> str:
    """One line of the table: medians, and between which half of the rounds lies."""

    def cell(quartiles: list[float], factor: float = 1000, digits: int = 1) -> str:
        low, middle, high = (f'{factor * value:.{digits}f}' for value in quartiles)
        return f'{middle} ({low} to {high})'

    here = numbers['together']
    cells = [cell(here[phase]) for phase in (*PHASES, 'all')]
    cells += [cell(numbers['one_by_one']['all']), cell(numbers['ratio'], factor=1, digits=2)]
    return f'| {numbers["queries"]} | {" | ".join(cells)} |'


if __name__ == '__main__':
    run_tool(main, parse_args())
