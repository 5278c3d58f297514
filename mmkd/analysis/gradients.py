"""How strongly each loss pulls at the student's weights.

Values of losses say little: CWD and PKD of 5 each can differ six times in the gradient they send back. What
a ``loss_weight`` is to balance are the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..distillers import Distiller
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
        ratio: Norm of its gradient over that of the task losses', both at the weights that all losses
            reach. NaN without task losses or such weights.
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
    losses = _totals(distiller, distiller.loss(**data))
    gradients: dict[str, Sequence[Tensor | None]] = {}
    for name, loss in losses.items():
        if not loss.requires_grad:
            gradients[name] = [None] * len(weights)
            continue
        gradients[name] = torch.autograd.grad(
            loss, list(weights.values()), retain_graph=True, allow_unused=True
        )
    reached = [[each is not None for each in found] for found in gradients.values()]
    # A loss that found nothing to compare in this batch reaches nothing.
    shared = [all(each) for each in zip(*filter(any, reached), strict=True)]
    task = _flat(gradients[TASK], shared) if TASK in gradients else None
    return {
        name: LossGradient(
            float(loss.detach()),
            _norms(gradients[name], weights),
            *_against(gradients[name], shared, task),
        )
        for name, loss in losses.items()
    }


def _totals(distiller: Distiller, losses: dict) -> dict[str, Tensor]:
    """Each active distillation loss, and the sum of the student's own."""
    active = {name for name, entry in distiller.entries.items() if entry.schedule() > 0}
    if not active:
        raise ConfigError('no distillation loss is active; see losses')

    def total(value: Tensor | list[Tensor]) -> Tensor:
        values = value if isinstance(value, list) else [value]
        return torch.stack([each.mean() for each in values]).sum()

    # As mmengine adds them up: what has 'loss' in its name.
    own = [
        total(value)
        for name, value in losses.items()
        if name not in distiller.entries and 'loss' in name
    ]
    totals = {TASK: torch.stack(own).sum()} if own else {}
    return totals | {name: total(losses[name]) for name in distiller.entries if name in active}


def _flat(gradients: Iterable[Tensor | None], chosen: list[bool]) -> Tensor | None:
    parts = [
        each.flatten().float()
        for each, is_chosen in zip(gradients, chosen, strict=False)
        if is_chosen and each is not None
    ]
    return torch.cat(parts) if parts else None


def _norms(gradients: Iterable[Tensor | None], weights: dict[str, Tensor]) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name, gradient in zip(weights, gradients, strict=True):
        module = name.split('.')[0]
        square = 0.0 if gradient is None else float(gradient.float().square().sum())
        squares[module] = squares.get(module, 0.0) + square
    return {module: math.sqrt(square) for module, square in squares.items()}


def _against(
    gradients: Iterable[Tensor | None], shared: list[bool], task: Tensor | None
) -> tuple[float, float]:
    own = _flat(gradients, shared)
    if task is None or not task.any():
        return math.nan, math.nan
    if own is None or not own.any():
        return 0.0, math.nan
    norm, length = float(own.norm()), float(task.norm())
    return norm / length, float(own @ task) / (norm * length)


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
