"""Gradient of each loss at the student's parameters.

Loss values are no measure of influence: with the same value of 5, the gradients of CWD and PKD can differ by
a factor of six. A ``loss_weight`` must balance gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distillers import Distiller
from ..distillers.gradient_ratio import (
    gradient_norm,
    gradients,
    sum_of_means,
    task_losses,
)
from ..errors import ConfigError
from ..random_state import preserve_rng_state
from .training_cost import preserve_buffers

#: Name of the sum of the student's own losses.
TASK = 'task losses'


@dataclass(frozen=True)
class LossGradient:
    """The gradient of one loss; means over batches.

    Attributes:
        value: The loss, including its weight.
        norms: Euclidean norm of its gradient at the trained parameters of each module of the student, by
            name of the module; 0 for modules without gradient.
        ratio: Norm of its gradient divided by that of the task losses, at the parameters with both
            gradients, as in :class:`mmkd.distillers.gradient_ratio.GradientRatio`. NaN without task losses.
        cosine: Cosine of these two gradients: 1 for the same direction, below 0 if the loss opposes the
            task losses.
    """

    value: float
    norms: dict[str, float]
    ratio: float
    cosine: float


def measure_gradients(distiller: Distiller, batches: Iterable[dict]) -> dict[str, LossGradient]:
    """Measure the gradient of each loss separately, at the current weights.

    Weights, BatchNorm statistics and random number generators are restored. Schedules of losses are at their
    current step; outside a training run this is the start.

    Args:
        distiller: A distiller on its device, with the weights to measure at.
        batches: Batches of the train data loader, before preprocessing.

    Returns:
        Gradients by name: :data:`TASK`, if the student computes its own losses, then the distillation losses.

    Raises:
        ConfigError: No loss is active, or ``batches`` is empty.
    """
    found: list[dict[str, LossGradient]] = []
    training = distiller.training
    with preserve_buffers(distiller), preserve_rng_state():
        distiller.train()  # backbones freeze their stages here
        weights = {
            name: it for name, it in distiller.student.named_parameters() if it.requires_grad
        }
        try:
            for raw in batches:
                data = distiller.data_preprocessor(raw, True)
                found.append(_step_gradients(distiller, data, weights))
        finally:
            distiller.train(training)
    if not found:
        raise ConfigError('train_dataloader: returned no batch, so no gradient can be measured')
    return {name: _mean([step[name] for step in found]) for name in found[0]}


def _step_gradients(
    distiller: Distiller, data: dict, weights: dict[str, Tensor]
) -> dict[str, LossGradient]:
    losses = distiller.loss(**data)
    active = {name for name, entry in distiller.entries.items() if entry.schedule() > 0}
    if not active:
        raise ConfigError('losses: none is active, so there is no gradient to measure')
    tasks = task_losses(losses, distiller.entries)
    totals = {TASK: torch.stack([*tasks.values()]).sum()} if tasks else {}
    totals |= {name: sum_of_means(losses[name]) for name in distiller.entries if name in active}
    found = {
        name: dict(zip(weights, gradients(loss, weights.values()), strict=True))
        for name, loss in totals.items()
    }
    return {
        name: LossGradient(
            float(loss.detach()),
            _norms(found[name]),
            *_ratio_and_cosine(found[name], found.get(TASK)),
        )
        for name, loss in totals.items()
    }


def _norms(gradient: dict[str, Tensor | None]) -> dict[str, float]:
    modules = dict.fromkeys(name.split('.')[0] for name in gradient)
    return {
        module: float(
            gradient_norm(it for name, it in gradient.items() if name.split('.')[0] == module)
        )
        for module in modules
    }


def _ratio_and_cosine(
    own: dict[str, Tensor | None], task: dict[str, Tensor | None] | None
) -> tuple[float, float]:
    if task is None:
        return math.nan, math.nan
    given = ((own[name], task[name]) for name in own)
    pairs = [(mine, theirs) for mine, theirs in given if mine is not None and theirs is not None]
    norm = float(gradient_norm(mine for mine, _ in pairs))
    length = float(gradient_norm(theirs for _, theirs in pairs))
    if not norm:
        return 0.0, math.nan  # the loss had nothing to compare in this batch
    if not length:
        return math.nan, math.nan
    product = sum(float((mine * theirs).float().sum()) for mine, theirs in pairs)
    return norm / length, product / (norm * length)


def _mean(steps: list[LossGradient]) -> LossGradient:
    def mean(values: Iterable[float]) -> float:
        values = list(values)
        return sum(values) / len(values)

    return LossGradient(
        mean(step.value for step in steps),
        {name: mean(step.norms[name] for step in steps) for name in steps[0].norms},
        mean(step.ratio for step in steps),
        mean(step.cosine for step in steps),
    )
