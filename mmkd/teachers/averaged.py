"""The moving average of the student as teacher."""

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

    Tarvainen and Valpola, "Mean Teachers are Better Role Models", NeurIPS 2017 (arXiv 1703.01780): the
    averaged weights are more accurate than the student's current weights. The average is updated after
    each optimizer step, and saved and resumed with the training run
    (:class:`mmkd.hooks.DistillationHook`).

    Args:
        student: The student.
        ema: Config of an averaged model of mmengine or mmdet, as for ``EMAHook``: ``type``, ``momentum``,
            ``update_buffers`` …
        classes: The student's class names.
        name: See :class:`LiveTeacher`.
        scale: See :class:`LiveTeacher`.
        amp: See :class:`LiveTeacher`.
        **options: See :class:`LiveTeacher`.

    Examples:
        >>> from mmengine.hub import get_model
        >>> from mmkd.teachers import AveragedTeacher
        >>> student = get_model('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
        >>> teacher = AveragedTeacher(student, ema=dict(type='ExpMomentumEMA', momentum=0.0002))
        >>> teacher.update(student)  # after each step of the optimizer
        >>> teacher.average.steps.item()
        1
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
                f'{name}.shard: supported only for a teacher from a checkpoint, but each process averages '
                f'its own student; remove it'
            )
        self.sharding = TeacherSharding(name)
        config = dict(dict(type='ExpMomentumEMA', update_buffers=True), **ema)
        try:
            self.average = MODELS.build(config, default_args=dict(model=student))
        except (TypeError, KeyError, AssertionError) as error:
            raise ConfigError(f'{name}.ema: cannot build {ema}: {error}') from None
        self._freeze(self.average.module, options)
        self.classes = tuple(classes) if classes else None

    @property
    def origin(self) -> str:
        """The text "the average of the student", for the log."""
        return 'the average of the student'

    def update(self, student: Detector) -> None:
        """Update the average with the student's current weights."""
        self.average.update_parameters(student)
        self.detector.eval()
