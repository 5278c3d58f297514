"""One entry of a distiller's ``losses``."""

from __future__ import annotations

from typing import Any

from mmdet.registry import MODELS, TASK_UTILS
from torch import Tensor, nn

from ..alignments import Alignment, Pair, Step
from ..errors import ConfigError, PathError, UserError, near
from ..families import Family
from ..recorder import Source
from .schedule import Schedule

OWN_KEYS = (
    *('student', 'teacher', 'align', 'connector', 'teacher_connector', 'schedule', 'loss_weight'),
)
# What labels can tell a loss, and what tells it.
TARGETS = {
    'class': "align=dict(type='RoIClassAlignment') with the student's proposals",
    'box': "align=dict(type='RoIBoxAlignment') with the student's proposals",
    'foreground': "align=dict(type='ForegroundFeatureAlignment')",
}


class LossEntry:
    """What to compare, brought into correspondence how, by which loss, when and how strongly.

    Args:
        name: The key in ``losses`` and in the log; it must contain ``loss``, since mmengine adds up
            just such keys.
        config: ``type`` and arguments of the loss, and beside them: ``student`` and ``teacher``, what
            to record (:class:`mmkd.recorder.Source`); ``align``, default
            ``dict(type='FeatureAlignment')``; ``connector``, applied to the student's output, and
            ``teacher_connector``, applied to the teacher's, both trained and either one or a list of
            them, one after the other; ``schedule``, the arguments of
            :class:`mmkd.distillers.schedule.Schedule`; and ``loss_weight``, default 1.

    Raises:
        ConfigError: The entry is not complete or has unknown arguments.
    """

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        self.name = name
        with self.blame():
            if 'loss' not in name or '.' in name:
                raise ConfigError(
                    "the name must contain 'loss' and no dot, or mmengine would not add it to the total"
                )
            config = dict(config)
            own = {key: config.pop(key) for key in OWN_KEYS if key in config}
            absent = [key for key in ('student', 'teacher') if key not in own] + [
                key for key in ('type',) if key not in config
            ]
            if absent:
                raise ConfigError(f'{", ".join(absent)} not given')
            self.student, self.teacher = Source.parse(own['student']), Source.parse(own['teacher'])
            self.loss_weight = float(own.get('loss_weight', 1.0))
            try:
                self.schedule = Schedule(**(own.get('schedule') or {}))
            except TypeError as error:
                raise ConfigError(f'schedule: {error}') from None
            self.loss: nn.Module = build(MODELS, config, 'loss')
            self.align: Alignment = build(
                TASK_UTILS, own.get('align') or dict(type='FeatureAlignment'), 'align'
            )
            self.align.bind(self.student, self.teacher)
            #: What the loss must be told of the labels, if anything: a key of :data:`TARGETS`.
            self.needs_target: str | None = getattr(self.loss, 'needs_target', None)
            self.align.wants_target = bool(self.needs_target)
            #: What is trained for this entry alone, by the side whose output it adapts.
            self.connectors: dict[str, nn.Module] = {
                side: _connector(own[key], key)
                for side, key in (('student', 'connector'), ('teacher', 'teacher_connector'))
                if own.get(key)
            }
            if any(True for _ in self.loss.parameters()):
                raise ConfigError(
                    f'{type(self.loss).__name__} has weights of its own, which nothing would train; '
                    f'trainable parts belong into a connector'
                )

    def blame(self) -> _Blame:
        """A context in which every UserError names this entry."""
        return _Blame(self.name)

    @property
    def student_sources(self) -> list[Source]:
        return [self.student, *self.align.student_sources]

    @property
    def teacher_sources(self) -> list[Source]:
        return [self.teacher, *self.align.teacher_sources]

    def teacher_parts(self, family: Family) -> set[str]:
        """Parts of the teacher that must run for this entry."""
        part_of = family.joint_part_of if self.align.joint else family.part_of
        return {part_of(source) for source in self.teacher_sources}

    def check(self, student: nn.Module, teacher: nn.Module, options: dict[str, Any]) -> None:
        """Refuse a pair of models this entry cannot compare, before the first iteration."""
        with self.blame():
            self.align.check(student, teacher, options)
            activation = getattr(self.loss, 'activation', None)
            if activation and self.align.activation and activation != self.align.activation:
                raise ConfigError(
                    f'the scores are made for a {self.align.activation}: set activation='
                    f"'{self.align.activation}'"
                )
            if self.needs_target and self.needs_target != self.align.target:
                raise self._no_target()
            wanted, given = (getattr(it, 'box_format', None) for it in (self.loss, self.align))
            if wanted and given and wanted != given:
                raise ConfigError(
                    f"{type(self.loss).__name__} compares boxes as {wanted}: set align.box_format='{wanted}'"
                )

    def __call__(self, step: Step, factor: float = 1.0) -> Tensor:
        """The weighted loss of one step, a scalar; the mean over pairs (levels)."""
        with self.blame():
            student, teacher = step.student_record[self.student], step.teacher_record[self.teacher]
            if 'student' in self.connectors:
                student = self.connectors['student'](student)
            if 'teacher' in self.connectors:
                teacher = self.connectors['teacher'](teacher)
            pairs = self.align(student, teacher, step)
            values = [
                self.loss(pair.student, pair.teacher, pair.weight, **self._target(pair))
                * pair.scale
                for pair in pairs
            ]
            return sum(values) / len(values) * (self.loss_weight * factor)

    def _target(self, pair: Pair) -> dict[str, Tensor]:
        if not self.needs_target:
            return {}
        if pair.target is None:
            raise self._no_target()
        return dict(target=pair.target)

    def _no_target(self) -> ConfigError:
        return ConfigError(
            f'{type(self.loss).__name__} needs the labelled {self.needs_target} of each row or map, which '
            f'{type(self.align).__name__} does not tell here; use {TARGETS[self.needs_target]}'
        )


class _Blame:
    """Prefixes the message of a UserError with the config key it comes from."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        prefix = f'losses.{self.name}: '
        if isinstance(error, UserError) and not str(error).startswith(prefix):
            error.args = (prefix + str(error),)


def _connector(config: Any, key: str) -> nn.Module:
    if not isinstance(config, (list, tuple)):
        return build(MODELS, config, key)
    return nn.Sequential(*(build(MODELS, each, f'{key}[{i}]') for i, each in enumerate(config)))


def build(registry: Any, config: dict[str, Any], what: str) -> Any:
    """Build from a registry; a wrong type or argument is a ConfigError that names what is possible."""
    if not isinstance(config, dict) or 'type' not in config:
        raise ConfigError(f'{what}={config!r} is no dict with a type')
    kind = config['type']
    if isinstance(kind, str) and registry.get(kind) is None:
        raise PathError(f"{what}.type='{kind}' is not registered{near(kind, registry.module_dict)}")
    try:
        return registry.build(dict(config))
    except TypeError as error:
        # Registries wrap the constructor's own message, which is the useful part.
        raise ConfigError(f'{what} {kind}: {str(error).split("__init__() ")[-1]}') from None
