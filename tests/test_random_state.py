"""Random numbers, left alone."""

from __future__ import annotations

import random

import numpy as np
import torch

from mmkd.random_state import preserve_rng_state


def test_drawing_inside_changes_nothing_outside():
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = draw()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    with preserve_rng_state():
        assert draw() == expected
    assert draw() == expected
