"""One entry of a distiller's ``losses``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.dist import get_world_size
from torch import Tensor, nn

from ..alignments import Alignment, Pair, Step
from ..alignments.teacher_mean import mean_over_teachers, require_same_classes
from ..errors import ConfigError, PathError, UserError, did_you_mean
from ..families import Family
from ..losses.reduction import shares_of_ranks
from ..recorder import Source
from ..teachers import TEACHER
from .early_backward import backpropagate_early, can_backpropagate_early
from .schedule import Schedule

OWN_KEYS = (
    *('student', 'teacher', 'teacher_name', 'align', 'connector', 'teacher_connector'),
    *('schedule', 'loss_weight'),
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
            to record (:class:`mmkd.recorder.Source`); ``teacher_name``, whose teacher it is where
            there are several, or the share of each in a mean over them; ``align``, default
            ``dict(type='FeatureAlignment')``; ``connector``, applied to the student's output, and
            ``teacher_connector``, applied to the teacher's, both trained and either one or a list of
            them, one after the other; ``schedule``, the arguments of
            :class:`mmkd.distillers.schedule.Schedule`; and ``loss_weight``, default 1.

    Raises:
        ConfigError: The entry is not complete or has unknown arguments.
    """

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        self.name = name
        with self.prefix_errors():
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
            #: What the loss must be told of the labels, if anything: a key of :data:`TARGETS`.
            self.needs_target: str | None = getattr(self.loss, 'needs_target', None)
            if self.needs_target and self.needs_target not in TARGETS:
                raise ConfigError(
                    f'{type(self.loss).__name__}.needs_target={self.needs_target!r} is none of {(*TARGETS,)}'
                )
            #: The share of each teacher, by name.
            self.shares = shares_of(own.get('teacher_name', TEACHER))
            #: By teacher, as an alignment knows the pair of models it brings together.
            self.aligns: dict[str, Alignment] = {}
            for teacher in self.shares:
                align = build(
                    TASK_UTILS, own.get('align') or dict(type='FeatureAlignment'), 'align'
                )
                align.bind(self.student, self.teacher)
                align.wants_target = bool(self.needs_target)
                self.aligns[teacher] = align
            #: Whether the way back to the student's output is taken as soon as the loss is there.
            self.backpropagates_early = self.align.is_deep
            if len(self.shares) > 1 and own.get('teacher_connector'):
                raise ConfigError(
                    'teacher_connector belongs to one teacher; teacher_name gives several'
                )
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

    def prefix_errors(self) -> _ErrorPrefix:
        """A context in which every UserError names this entry."""
        return _ErrorPrefix(self.name)

    @property
    def align(self) -> Alignment:
        """The alignment with the first of its teachers."""
        return next(iter(self.aligns.values()))

    def student_sources(self, teacher: str) -> list[Source]:
        """What is recorded of the student for the comparison with a teacher."""
        return [self.student, *self.aligns[teacher].student_sources]

    def teacher_sources(self, teacher: str) -> list[Source]:
        """What is recorded of a teacher."""
        return [self.teacher, *self.aligns[teacher].teacher_sources]

    def teacher_parts(self, teacher: str, family: Family) -> set[str]:
        """Parts of a teacher that must run for this entry."""
        part_of = family.joint_part_of if self.aligns[teacher].joint else family.part_of
        return {part_of(source) for source in self.teacher_sources(teacher)}

    def check(
        self, student: nn.Module, teacher: nn.Module, options: dict[str, Any], name: str = TEACHER
    ) -> None:
        """Refuse a pair of models this entry cannot compare, before the first iteration."""
        align = self.aligns[name]
        with self.prefix_errors():
            align.check(student, teacher, options)
            activation = getattr(self.loss, 'activation', None)
            if activation and align.activation and activation != align.activation:
                raise ConfigError(
                    f'the scores are made for a {align.activation}: set activation='
                    f"'{align.activation}'"
                )
            if self.needs_target and self.needs_target != align.target:
                raise self._no_target()
            wanted, given = (getattr(it, 'box_format', None) for it in (self.loss, align))
            if wanted and given and wanted != given:
                raise ConfigError(
                    f"{type(self.loss).__name__} compares boxes as {wanted}: set align.box_format='{wanted}'"
                )
            if len(self.aligns) > 1 and not align.rows_are_fixed:
                raise ConfigError(
                    f'teacher_name: each teacher would choose what {type(align).__name__} compares here, so '
                    f'there is no mean over them; write an entry for each'
                )

    def __call__(self, steps: Mapping[str, Step], factor: float = 1.0) -> Tensor:
        """The weighted loss of one step, a scalar; the mean over pairs (levels).

        Args:
            steps: What it reads, by teacher.
            factor: Of its schedule.
        """
        with self.prefix_errors():
            student = next(iter(steps.values())).student_record[self.student]
            if self.backpropagates_early and can_backpropagate_early():
                weights = [w for c in self.connectors.values() for w in c.parameters()]
                return backpropagate_early(
                    lambda own: self._loss(own, steps, factor), student, weights
                )
            return self._loss(student, steps, factor)

    def _loss(self, student: Any, steps: Mapping[str, Step], factor: float) -> Tensor:
        if 'student' in self.connectors:
            student = self.connectors['student'](student)
        pairs_of = {}
        for name, align in self.aligns.items():
            teacher = steps[name].teacher_record[self.teacher]
            if 'teacher' in self.connectors:
                teacher = self.connectors['teacher'](teacher)
            pairs_of[name] = align(student, teacher, steps[name])
        pairs = next(iter(pairs_of.values()))
        if len(pairs_of) > 1:
            maps = [step.class_map for step in steps.values()]
            require_same_classes([each for each in maps if each is not None])
            pairs = mean_over_teachers(
                list(pairs_of.values()), list(self.shares.values()), self.align.activation
            )
        values = [
            self.loss(pair.student, pair.teacher, pair.weight, **self._target(pair)) * pair.scale
            for pair in pairs
        ]
        if self.align.reduces_over_ranks and get_world_size() > 1:
            values = torch.stack(values) * shares_of_ranks(_totals(pairs))
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


def _totals(pairs: list[Pair]) -> Tensor:
    """What the mean over each pair's rows is divided by, their number or the sum of their weights."""
    like = pairs[0].student
    weights = [like.new_ones(len(p.student)) if p.weight is None else p.weight for p in pairs]
    return torch.stack([weight.float().sum() for weight in weights])


class _ErrorPrefix:
    """Prefixes the message of a UserError with the config key it comes from."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        prefix = f'losses.{self.name}: '
        if isinstance(error, UserError) and not str(error).startswith(prefix):
            error.args = (prefix + str(error),)


def shares_of(teachers: Any) -> dict[str, float]:
    """The share of each teacher in a loss; they add up to 1.

    Args:
        teachers: A teacher's name, or weights by name.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(teachers, str):
        return {teachers: 1.0}
    if not isinstance(teachers, dict) or not teachers or min(teachers.values()) <= 0:
        raise ConfigError(
            f'teacher_name={teachers!r} is neither the name of a teacher nor a weight above 0 for each of '
            f'several, as in dict(first=0.5, second=0.5)'
        )
    total = sum(teachers.values())
    return {name: weight / total for name, weight in teachers.items()}


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
        raise PathError(
            f"{what}.type='{kind}' is not registered{did_you_mean(kind, registry.module_dict)}"
        )
    try:
        return registry.build(dict(config))
    except TypeError as error:
        # Registries wrap the constructor's own message, which is the useful part.
        raise ConfigError(f'{what} {kind}: {str(error).split("__init__() ")[-1]}') from None
