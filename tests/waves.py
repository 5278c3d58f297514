"""Numbers that are the same with every version of torch."""

from __future__ import annotations

import math

import torch


def wave(shape: tuple[int, ...], phase: float) -> torch.Tensor:
    """Values between -3 and 3 of any shape, others for each phase."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    values = 2 * torch.sin(0.7 * index + phase) + torch.cos(0.13 * phase * index)
    return values.reshape(shape).float()


def rows(phase: float) -> torch.Tensor:
    """Seven rows of five numbers."""
    return wave((7, 5), phase)
