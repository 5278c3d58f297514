"""How strongly each loss pulls at the student's weights.

Values of losses say little: CWD and PKD of 5 each can differ six times in the gradient they send back. What
a ``loss_weight`` is to balance are the gradients.
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
from .training_cost import buffers_kept

#: The student's own losses, added up.
TASK = 'task losses'


@dataclass(frozen=True)
class LossGradient:
    """What a loss does to the student's weights; means over batches.

    Attributes:
        value: The loss, with its weight.
        norms: Euclidean norm of its gradient at the trained weights of each module of the student, by
            the module's name; 0 where it does not reach.
        ratio: Norm of its gradient over that of the task losses', both at the weights that both reach,
            as :class:`mmkd.distillers.gradient_ratio.GradientRatio` takes it. NaN without task losses.
        cosine: Between these two gradients: 1 where both want the same, below 0 where the loss works
            against the labels.
    """

    value: float
    norms: dict[str, float]
    ratio: float
    cosine: float


def measure_gradients(distiller: Distiller, batches: Iterable[dict]) -> dict[str, LossGradient]:
    """The gradient of each loss by itself, at the weights as they are.

    Nothing is trained: weights, BatchNorm statistics and random number generators are left as they were.
    Losses act as their schedules say at present, which outside a run is its start.

    Args:
        distiller: On its device, with the weights that are to be looked at.
        batches: Raw data as a train data loader gives it.

    Returns:
        By name, first :data:`TASK` where the student has its own losses, then the distillation losses.

    Raises:
        ConfigError: No loss is active, or there is no batch.
    """
    found: list[dict[str, LossGradient]] = []
    training = distiller.training
    with buffers_kept(distiller), preserve_rng_state():
        distiller.train()  # which is when a backbone freezes its stages
        weights = {
            name: it for name, it in distiller.student.named_parameters() if it.requires_grad
        }
        try:
            for raw in batches:
                data = distiller.data_preprocessor(raw, True)
                found.append(_of_step(distiller, data, weights))
        finally:
            distiller.train(training)
    if not found:
        raise ConfigError('there is no batch to look at')
    return {name: _mean([step[name] for step in found]) for name in found[0]}


def _of_step(
    distiller: Distiller, data: dict, weights: dict[str, Tensor]
) -> dict[str, LossGradient]:
    losses = distiller.loss(**data)
    active = {name for name, entry in distiller.entries.items() if entry.schedule() > 0}
    if not active:
        raise ConfigError('no distillation loss is active; see losses')
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
            *_against(found[name], found.get(TASK)),
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


def _against(
    own: dict[str, Tensor | None], task: dict[str, Tensor | None] | None
) -> tuple[float, float]:
    if task is None:
        return math.nan, math.nan
    given = ((own[name], task[name]) for name in own)
    pairs = [(mine, theirs) for mine, theirs in given if mine is not None and theirs is not None]
    norm = float(gradient_norm(mine for mine, _ in pairs))
    length = float(gradient_norm(theirs for _, theirs in pairs))
    if not norm:
        return 0.0, math.nan  # it found nothing to compare in this batch
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
