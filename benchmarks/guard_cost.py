"""Time the check of losses and gradients for NaN and infinity, as a share of a training step.

A step is forward pass, backward pass and optimizer step on random images and boxes, without loading.
The checks are timed inside the step: other work on the machine slows both alike.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'tools')]

from _cli import load_config, make_parser, run_tool  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('--batch-size', type=int, default=2, help='images per step (default: 2)')
    parser.add_argument(
        '--size', type=int, default=640, metavar='PX', help='side of the images (default: 640)'
    )
    parser.add_argument('--iterations', type=int, default=12, help='steps (default: 12)')
    parser.add_argument(
        '--threads', type=int, default=1, help='threads of torch on the CPU (default: 1)'
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import torch
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.device import get_device
    from mmengine.optim import OptimWrapper
    from mmengine.registry import init_default_scope

    from mmkd.hooks import GuardHook

    class TimedGuard(GuardHook):
        """GuardHook that measures its own time."""

        seconds = 0.0

        def _check_losses(self, *arguments: Any) -> None:
            self._time(super()._check_losses, *arguments)

        def _check_gradients(self, *arguments: Any) -> None:
            self._time(super()._check_gradients, *arguments)

        def _time(self, check: Any, *arguments: Any) -> None:
            synchronize()  # do not count the step's own work
            start = time.perf_counter()
            check(*arguments)
            synchronize()
            self.seconds += time.perf_counter() - start

    device = args.device or get_device()

    def synchronize() -> None:
        if device.startswith('cuda'):
            torch.cuda.synchronize()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cfg = load_config(args, modes=())
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    model = MODELS.build(cfg.model).to(device).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    wrapper = OptimWrapper(torch.optim.SGD(weights, lr=1e-6))
    shapes, boxes = [(3, args.size, args.size)] * args.batch_size, [8] * args.batch_size
    data = demo_mm_inputs(args.batch_size, shapes, num_items=boxes, num_classes=2)
    guard = TimedGuard()
    guard.before_train(SimpleNamespace(model=model, optim_wrapper=wrapper, iter=0))  # type: ignore[arg-type]
    shares, steps = [], []
    for _ in range(args.iterations + 2):
        guard.seconds, start = 0.0, time.perf_counter()
        model.train_step(data, wrapper)
        synchronize()
        steps.append(time.perf_counter() - start)
        shares.append(guard.seconds / steps[-1])
    millions = sum(weight.numel() for weight in weights) / 1e6
    print(
        f'{args.config}, {millions:.1f} M trained parameters, {args.batch_size} images of {args.size} px on '
        f'{device}: {median(steps[2:]):.3f} s per step; the checks take '
        f'{100 * median(shares[2:]):.2f} % (at most {100 * max(shares[2:]):.2f} %)'
    )


if __name__ == '__main__':
    run_tool(main, parse_args())
