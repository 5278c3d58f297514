"""The moving average of the student as its own teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.registry import MODELS

from ..errors import ConfigError
from ..sharding.teacher import TeacherSharding
from ..types import Detector
from .live import LiveTeacher
from .precision import TeacherPrecision
from .resolution import check_scale


class AveragedTeacher(LiveTeacher):
    """The exponential moving average of the student itself ("mean teacher").

    Tarvainen, Valpola: Mean Teachers are Better Role Models, NeurIPS 2017 (arXiv 1703.01780): the
    average is more accurate than the student of the moment. It is updated after each step of the
    optimizer, and saved and resumed with the training (:class:`mmkd.hooks.DistillationHook`).

    Args:
        student: The student.
        ema: Config of an averaged model of mmengine or mmdet, as an ``EMAHook`` has it: ``type``,
            ``momentum``, ``update_buffers`` …
        classes: The student's class names.
        name, scale, amp, options: As of :class:`LiveTeacher`.
    """

    def __init__(
        self,
        student: Detector,
        ema: dict[str, Any],
        classes: Sequence[str] | None = None,
        name: str = 'teacher',
        scale: float = 1.0,
        amp: str | bool | None = None,
        **options: Any,
    ) -> None:
        self.name = name
        self.scale = check_scale(scale, name)
        self.precision = TeacherPrecision(name, amp)
        if 'shard' in options:
            raise ConfigError(
                f'{name}.shard is for a teacher from a checkpoint: each process averages its own student; '
                f'leave it out'
            )
        self.sharding = TeacherSharding(name)
        config = dict(dict(type='ExpMomentumEMA', update_buffers=True), **ema)
        try:
            self.average = MODELS.build(config, default_args=dict(model=student))
        except (TypeError, KeyError, AssertionError) as error:
            raise ConfigError(f'{name}.ema={ema}: {error}') from None
        self._freeze(self.average.module, options)
        self.classes = tuple(classes) if classes else None

    @property
    def origin(self) -> str:
        return 'the average of the student'

    def update(self, student: Detector) -> None:
        """Take the student's present weights into the average."""
        self.average.update_parameters(student)
        self.detector.eval()
