"""Measured loss weights: they set the ratio of a loss's gradient to the gradient of the task losses."""

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
# Scales losses before gradients are measured: float16 has no numbers below 6e-8, and mmengine scales the loss
# only later.
HALF_SCALE = 2.0**12
# Common to the two error messages that torch has had.
CHECKPOINTING = re.compile(r'compatible with \.grad\(\)')


class GradientRatio:
    """Measures the weight at which a loss's gradient has a given ratio to the gradient of the task losses.

    Both gradient norms are taken over the student's weights that both losses reach. A loss on one head is
    thus compared with the gradient of the task losses in that head and the layers below. The weight is
    ``ratio`` divided by the geometric mean, over steps, of (norm of the loss's gradient) / (norm of the
    task losses' gradient). It is used from the first step on. It is fixed after ``steps`` steps, or, with
    ``every``, updated during the whole training run.

    Related methods:

    - GradNorm (Chen et al. 2018, arXiv 1711.02257, sec. 3) trains the weights of all tasks with an extra
      loss: the norms at one shared layer follow the tasks' training rates.
    - RT-DETRv4 (Liao et al. 2025, arXiv 2510.25257, Gradient-guided Adaptive Modulation) changes one weight
      after each epoch: the share of one encoder layer in the whole gradient stays in a range.

    Here nothing is trained, and each loss has its own ratio, measured on its own gradient.

    Args:
        ratio: Ratio of the norms, above 0. With the default, 1, teacher and labels have gradients of the
            same size; on held-out images it was better than 0.3
            (benchmarks/studies/tuning/voc_160_tuning.py).
        modules: Paths of the student's modules. The norms are taken over their weights. Default: all.
        steps: Number of measured steps at the start. Steps without a gradient of the loss do not count.
        every: After the first ``steps``, also measure every ``every``-th step. None: fix the weight.
        momentum: With ``every``, the share of the old mean that each further measurement keeps.

    Raises:
        ConfigError: A value is out of range.
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
        #: Number of steps in which the loss was active, and number of measured steps.
        self.seen = self.measured = 0
        self._mean = 0.0  # mean of the logarithm of the norms' quotient

    @property
    def weight(self) -> float:
        """The weight from the measurements so far; 1 before the first."""
        return self.ratio * math.exp(-self._mean) if self.measured else 1.0

    def should_measure(self) -> bool:
        """Return whether to measure this step."""
        if self.measured < self.steps:
            return True
        return self.every is not None and self.seen % self.every == 0

    def update(self, own: float, task: float) -> None:
        """Update the mean with the two norms of a step. A step with a norm of 0 or infinity is ignored."""
        if not (0 < own < math.inf and 0 < task < math.inf):
            return
        self.measured += 1
        # The plain mean at first, so that all of the first steps have the same weight.
        rate = 1 / min(self.measured, self.steps)
        if self.measured > self.steps:
            rate = 1 - self.momentum
        self._mean += rate * (math.log(own / task) - self._mean)

    def state(self) -> dict[str, float]:
        """Return the state that a resumed training run needs."""
        return dict(seen=self.seen, measured=self.measured, mean=self._mean)

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore the result of :meth:`state`."""
        self.seen, self.measured = int(state['seen']), int(state['measured'])
        self._mean = float(state['mean'])

    def check(self, student: nn.Module) -> None:
        """Check that the student has all ``modules``, with trained weights in each.

        Raises:
            PathError, ConfigError: It has not; the message names the path.
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
        """Return the names of the weights over which the norms are taken, sorted."""
        if self.modules is None:
            return sorted(names)
        inside = tuple(f'{path}.' for path in self.modules)
        return sorted(name for name in names if name.startswith(inside) or name in self.modules)


def gradient_ratio(config: Any) -> GradientRatio | None:
    """Return the measurement that a ``loss_weight`` asks for, or None if it is a number.

    Raises:
        ConfigError: A dict has unknown or invalid arguments.
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
    """Measure the gradients of losses and task losses, in the steps that are to be measured.

    The norms are averaged over all processes, so that all have the same weights.

    Args:
        ratios: The measurements, by name of the loss.
        losses: The losses without their weights, each a scalar.
        tasks: The student's own losses, each a scalar.
        student: The student.

    Raises:
        ConfigError: A loss and the task losses reach no weights in common.
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
                f'losses.{name}.loss_weight: must be a number, because this loss and the task losses reach '
                f'no weights of {where} in common; set a number'
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
                f'losses.{name}.loss_weight: fixed at {ratio.weight:.4g}; over {ratio.steps} steps, the norm '
                f'of its gradient was then {ratio.ratio:g} times that of the task losses'
            )


def reachable_weights(loss: Tensor, weights: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the weights that a loss depends on."""
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
    """Return the student's own losses of a step: the names that contain ``loss``, which mmengine sums.

    Args:
        losses: All losses by name.
        others: Names of the distillation losses, which are left out.

    Returns:
        A scalar per loss, by name.
    """
    others = set(others)
    own = {name: it for name, it in losses.items() if name not in others and 'loss' in name}
    return {name: sum_of_means(value) for name, value in own.items()}


def sum_of_means(value: Tensor | Sequence[Tensor]) -> Tensor:
    """Sum the means of all levels or layers of a loss, as mmengine does; returns a scalar."""
    values = [value] if isinstance(value, Tensor) else value
    return torch.stack([each.mean() for each in values]).sum()


def gradients(loss: Tensor, weights: Iterable[Tensor]) -> Sequence[Tensor | None]:
    """Return the gradient of a loss for each weight, or None for weights that it does not reach.

    Raises:
        ConfigError: The weights are inside a re-entrant activation checkpoint, or sharded.
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
            'gradients of single losses cannot be measured through activation checkpointing '
            "(with_cp=True); turn it off, or measure only later modules: loss_weight=dict(modules=['neck'])"
        ) from None


def gradient_norm(gradient: Iterable[Tensor | None]) -> Tensor:
    """Return the Euclidean norm over all elements, a scalar; None counts as 0."""
    squares = [each.detach().float().square().sum() for each in gradient if each is not None]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def _in_half_precision(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16
