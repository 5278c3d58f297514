"""The schedule of a loss weight: start, stop, warm-up and decay."""

from __future__ import annotations

import math

from mmengine.logging import MessageHub

from ..errors import ConfigError

UNITS = ('epoch', 'iter')
DECAYS = ('linear', 'cosine')


class Schedule:
    """The factor of a loss weight during training.

    The factor is 0 before ``begin`` and from ``end`` on. It rises linearly during ``warmup``. With
    ``decay``, it falls from 1 to 0 until ``end`` (or the end of training). While the factor is 0, the loss
    is not computed and the teacher does not run for it.

    Args:
        begin: Epoch or iteration at which the loss starts.
        end: Epoch or iteration at which the loss stops. None: it does not stop.
        warmup: Length of the linear rise from 0, counted from ``begin``.
        decay: ``linear``, ``cosine`` or None.
        unit: The unit of these numbers: ``epoch`` (fractions allowed) or ``iter``.

    Examples:
        >>> from mmkd.distillers import Schedule
        >>> schedule = Schedule(warmup=1, end=10, decay='linear')
        >>> [schedule.factor(epoch, last=12) for epoch in (0.5, 1, 5.5, 10)]
        [0.5, 1.0, 0.5, 0.0]
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
            raise ConfigError(f'schedule.unit: must be one of {UNITS}, got {unit!r}')
        if decay is not None and decay not in DECAYS:
            raise ConfigError(f'schedule.decay: must be one of {DECAYS} or None, got {decay!r}')
        if begin < 0 or warmup < 0 or (end is not None and end < begin + warmup):
            raise ConfigError(
                f'schedule: begin and warmup must be at least 0, and end at least begin + warmup, got '
                f'begin={begin}, warmup={warmup}, end={end}'
            )
        self.begin, self.end, self.warmup, self.decay, self.unit = begin, end, warmup, decay, unit

    def factor(self, now: float, last: float) -> float:
        """Return the factor at one point of training.

        Args:
            now: Number of finished epochs or iterations.
            last: Number of epochs or iterations of the whole training run.
        """
        end = last if self.end is None else self.end
        if now < self.begin or (self.end is not None and now >= self.end):
            return 0.0
        if self.warmup and now < self.begin + self.warmup:
            # A weight of 0 would waste the first iteration of a warm-up.
            return max((now - self.begin) / self.warmup, 1e-3)
        if self.decay is None:
            return 1.0
        start = self.begin + self.warmup
        share = min(max((now - start) / max(end - start, 1e-12), 0.0), 1.0)
        return 1.0 - share if self.decay == 'linear' else 0.5 * (1.0 + math.cos(math.pi * share))

    def __call__(self) -> float:
        """Return the factor at the current iteration of the training run."""
        hub = MessageHub.get_current_instance()
        done, last = hub.get_info('iter') or 0, hub.get_info('max_iters') or 0
        if self.unit == 'iter':
            return self.factor(done, last)
        epochs = hub.get_info('max_epochs') or 1
        return self.factor(done * epochs / last if last else 0.0, epochs)
