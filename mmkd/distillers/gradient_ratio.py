"""Loss weights that are measured: each loss's gradient gets a given ratio to that of the task losses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.logging import MMLogger
from torch import Tensor, nn

from ..errors import ConfigError, PathError, did_you_mean

AUTO = 'auto'
# float16 has no smaller numbers than 6e-8; mmengine's loss scaling comes after the losses.
HALF_SCALE = 2.0**12
# Of the two wordings that torch has had.
CHECKPOINTING = re.compile(r'compatible with \.grad\(\)')


class GradientRatio:
    """The weight at which a loss's gradient has a given ratio to the gradient of the task losses.

    Both norms are taken at the student's weights that both reach, so a loss on one head is held against what
    the labels do to that head and below. The weight is ``ratio`` over the geometric mean of (norm of the
    loss's gradient) / (norm of the task losses' gradient). It holds from the first step on, and is fixed
    after ``steps`` of them, or with ``every`` measured again for all of the training run.

    GradNorm (Chen et al. 2018, arXiv 1711.02257, sec. 3) trains the weights of all tasks by a loss of
    their own, so that norms at one shared layer follow the tasks' rates of progress. RT-DETRv4 (Liao et
    al. 2025, arXiv 2510.25257, Gradient-guided Adaptive Modulation) changes one weight after each epoch so
    that the share of one encoder layer in the whole gradient stays in a range. Here nothing is trained,
    every loss has a ratio of its own, and it is that of the loss's gradient itself.

    Args:
        ratio: Of the norms, above 0. The default lets teacher and labels pull alike; on held-out images it
            did better than 0.3 (benchmarks/studies/tuning/voc_160_tuning.py).
        modules: Paths of modules of the student to take the norms at; default all.
        steps: How many steps are measured at the start. Steps in which the loss has no gradient do not
            count.
        every: After them, measure each ``every``-th step too; None to fix the weight.
        momentum: With ``every``, the share of the old mean that each further measurement keeps.

    Raises:
        ConfigError: A value is out of its range.
    """

    def __init__(
        self,
        ratio: float = 1.0,
        modules: Sequence[str] | None = None,
        steps: int = 50,
        every: int | None = None,
        momentum: float = 0.9,
    ) -> None:
        if (
            isinstance(ratio, bool)
            or not isinstance(ratio, (int, float))
            or not 0 < ratio < math.inf
        ):
            raise ConfigError(f'loss_weight.ratio: must be above 0, got {ratio!r}')
        for key, value in (('steps', steps), ('every', 1 if every is None else every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f'loss_weight.{key}: must be an integer above 0, got {value!r}')
        if not 0 <= momentum < 1:
            raise ConfigError(f'loss_weight.momentum: must be in [0, 1), got {momentum!r}')
        if isinstance(modules, str) or (modules is not None and not modules):
            raise ConfigError(
                f'loss_weight.modules: must be a list of module paths, got {modules!r}'
            )
        self.ratio, self.modules, self.steps = float(ratio), modules, steps
        self.every, self.momentum = every, momentum
        #: Steps in which the loss acted, and those of them that were measured.
        self.seen = self.measured = 0
        self._mean = 0.0  # of the logarithm of the quotient

    @property
    def weight(self) -> float:
        """The weight by what was measured so far; 1 before."""
        return self.ratio * math.exp(-self._mean) if self.measured else 1.0

    def should_measure(self) -> bool:
        """Whether this step is to be measured."""
        if self.measured < self.steps:
            return True
        return self.every is not None and self.seen % self.every == 0

    def update(self, own: float, task: float) -> None:
        """Take in the norms of a step; without a gradient of both there is nothing to learn from it."""
        if not (0 < own < math.inf and 0 < task < math.inf):
            return
        self.measured += 1
        # The plain mean at first, so that the first step weighs no more than others.
        rate = 1 / min(self.measured, self.steps)
        if self.measured > self.steps:
            rate = 1 - self.momentum
        self._mean += rate * (math.log(own / task) - self._mean)

    def state(self) -> dict[str, float]:
        """What a resumed training run needs."""
        return dict(seen=self.seen, measured=self.measured, mean=self._mean)

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state` gave."""
        self.seen, self.measured = int(state['seen']), int(state['measured'])
        self._mean = float(state['mean'])

    def check(self, student: nn.Module) -> None:
        """Refuse paths of ``modules`` that a student lacks, or in which nothing is trained.

        Raises:
            PathError, ConfigError: The path.
        """
        known = dict(student.named_modules())
        for path in self.modules or ():
            if path not in known:
                raise PathError(
                    f"loss_weight.modules: '{path}' is not in the student{did_you_mean(path, known)}"
                )
            if not any(weight.requires_grad for weight in known[path].parameters()):
                raise ConfigError(
                    f"loss_weight.modules: '{path}' has no trained weights; name another module"
                )

    def select_weights(self, names: set[str]) -> list[str]:
        """Of the names of weights, those to take the norms at, in order."""
        if self.modules is None:
            return sorted(names)
        inside = tuple(f'{path}.' for path in self.modules)
        return sorted(name for name in names if name.startswith(inside) or name in self.modules)


def gradient_ratio(config: Any) -> GradientRatio | None:
    """What a ``loss_weight`` asks to measure; None for a number.

    Raises:
        ConfigError: It is neither a number, ``'auto'`` nor a dict of arguments.
    """
    if config == AUTO or isinstance(config, dict):
        try:
            return GradientRatio(**({} if config == AUTO else config))
        except TypeError as error:
            words = str(error).split('__init__() ')[-1]
            raise ConfigError(f'loss_weight: {words}') from None
    return None


def measure_weights(
    ratios: Mapping[str, GradientRatio],
    losses: Mapping[str, Tensor],
    tasks: Mapping[str, Tensor],
    student: nn.Module,
) -> None:
    """Measure the gradients of losses beside that of the task losses, where it is due.

    All processes of a run take the mean over them, so that they agree.

    Args:
        ratios: By name of the loss.
        losses: Each without its weight, a scalar.
        tasks: The student's own losses, each a scalar.
        student: The student.

    Raises:
        ConfigError: A loss reaches none of the weights that the task losses reach.
    """
    due = [name for name, ratio in ratios.items() if ratio.should_measure()]
    for ratio in ratios.values():
        ratio.seen += 1
    if not due:
        return
    weights = {name: it for name, it in student.named_parameters() if it.requires_grad}
    task = torch.stack([*tasks.values()]).sum()
    reached_by_tasks = reachable_weights(task, weights)
    scale = HALF_SCALE if _in_half_precision(task.device.type) else 1.0
    norms = []
    for name in due:
        own = reachable_weights(losses[name], weights)
        at = [weights[it] for it in ratios[name].select_weights(own & reached_by_tasks)]
        if own and not at:
            where = 'loss_weight.modules' if ratios[name].modules else 'the student'
            raise ConfigError(
                f'losses.{name}.loss_weight: the loss and the task losses reach no weights of {where} in '
                f'common, so their gradients cannot be compared; give a number'
            )
        try:
            norms += [gradient_norm(gradients(loss * scale, at)) for loss in (losses[name], task)]
        except ConfigError as error:
            raise ConfigError(f'losses.{name}.loss_weight: {error}') from None
    together = torch.stack([each.to(task.device) for each in norms])
    all_reduce(together, 'mean')
    found = together.tolist()
    for index, name in enumerate(due):
        ratio = ratios[name]
        ratio.update(found[2 * index], found[2 * index + 1])
        if ratio.measured == ratio.steps and ratio.every is None:
            MMLogger.get_current_instance().info(
                f'losses.{name}.loss_weight: {ratio.weight:.4g} from now on, where its gradient had '
                f'{ratio.ratio:g} of the norm of the task losses, over {ratio.steps} steps'
            )


def reachable_weights(loss: Tensor, weights: Mapping[str, Tensor]) -> set[str]:
    """The names of the weights that a loss depends on."""
    names = {id(weight): name for name, weight in weights.items()}
    found, seen, left = set(), set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = names.get(id(getattr(node, 'variable', None)))
        if name is not None:
            found.add(name)
        left += [each for each, _ in node.next_functions]
    return found


def task_losses(
    losses: Mapping[str, Tensor | Sequence[Tensor]], others: Iterable[str]
) -> dict[str, Tensor]:
    """The student's own losses of a step, which mmengine adds up: what has ``loss`` in its name.

    Args:
        losses: All losses by name.
        others: Names of the distillation losses, which are left out.
    """
    others = set(others)
    own = {name: it for name, it in losses.items() if name not in others and 'loss' in name}
    return {name: sum_of_means(value) for name, value in own.items()}


def sum_of_means(value: Tensor | Sequence[Tensor]) -> Tensor:
    """The sum over levels or layers of the mean of each, a scalar."""
    values = [value] if isinstance(value, Tensor) else value
    return torch.stack([each.mean() for each in values]).sum()


def gradients(loss: Tensor, weights: Iterable[Tensor]) -> Sequence[Tensor | None]:
    """The gradient of a loss at each of the weights; None where it does not reach.

    Raises:
        ConfigError: The weights lie in a re-entrant activation checkpoint, or in shards.
    """
    weights = list(weights)
    if not loss.requires_grad or not weights:
        return [None] * len(weights)
    try:
        return torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if not CHECKPOINTING.search(str(error)):
            raise
        raise ConfigError(
            'the gradients of single losses cannot be measured through activation checkpointing '
            "(with_cp=True); switch it off, or measure behind it: loss_weight=dict(modules=['neck'])"
        ) from None


def gradient_norm(gradient: Iterable[Tensor | None]) -> Tensor:
    """The Euclidean norm of all elements, a scalar; of those of None, 0."""
    squares = [each.detach().float().square().sum() for each in gradient if each is not None]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def _in_half_precision(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16
