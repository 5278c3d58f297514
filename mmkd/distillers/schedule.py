"""When a distillation loss acts, and how strongly."""

from __future__ import annotations

import math

from mmengine.logging import MessageHub

from ..errors import ConfigError

UNITS = ('epoch', 'iter')
DECAYS = ('linear', 'cosine')


class Schedule:
    """The factor on a loss weight over training.

    The factor is 0 before ``begin`` and from ``end`` on, rises linearly over ``warmup`` and, with
    ``decay``, falls from 1 to 0 until ``end`` (or the end of training). While it is 0 the loss is not
    computed, and the teacher does not run for it.

    Args:
        begin: Epoch or iteration at which the loss starts.
        end: Epoch or iteration from which on it is off; None for never.
        warmup: Length of the linear rise from 0, counted from ``begin``.
        decay: ``linear``, ``cosine`` or None.
        unit: Whether these numbers count epochs (fractions allowed) or iterations.
    """

    def __init__(
        self,
        begin: float = 0,
        end: float | None = None,
        warmup: float = 0,
        decay: str | None = None,
        unit: str = 'epoch',
    ) -> None:
        if unit not in UNITS:
            raise ConfigError(f"schedule.unit='{unit}' is none of {UNITS}")
        if decay is not None and decay not in DECAYS:
            raise ConfigError(f"schedule.decay='{decay}' is none of {DECAYS}")
        if begin < 0 or warmup < 0 or (end is not None and end < begin + warmup):
            raise ConfigError(
                f'schedule: needs 0 <= begin, 0 <= warmup and begin + warmup <= end, got begin={begin}, '
                f'warmup={warmup}, end={end}'
            )
        self.begin, self.end, self.warmup, self.decay, self.unit = begin, end, warmup, decay, unit

    def factor(self, now: float, last: float) -> float:
        """The factor at a moment.

        Args:
            now: Epochs or iterations done.
            last: Epochs or iterations of the whole training.
        """
        end = last if self.end is None else self.end
        if now < self.begin or (self.end is not None and now >= self.end):
            return 0.0
        if self.warmup and now < self.begin + self.warmup:
            # The first iteration of a warm-up already learns a little; a weight of 0 would waste it.
            return max((now - self.begin) / self.warmup, 1e-3)
        if self.decay is None:
            return 1.0
        start = self.begin + self.warmup
        share = min(max((now - start) / max(end - start, 1e-12), 0.0), 1.0)
        return 1.0 - share if self.decay == 'linear' else 0.5 * (1.0 + math.cos(math.pi * share))

    def __call__(self) -> float:
        """The factor at the running training's present iteration."""
        hub = MessageHub.get_current_instance()
        done, last = hub.get_info('iter') or 0, hub.get_info('max_iters') or 0
        if self.unit == 'iter':
            return self.factor(done, last)
        epochs = hub.get_info('max_epochs') or 1
        return self.factor(done * epochs / last if last else 0.0, epochs)
