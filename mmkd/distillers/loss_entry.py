"""One entry of a distiller's ``losses``."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.dist import get_world_size
from torch import Tensor, nn

from ..alignments import Alignment, Pair, Step
from ..alignments.teacher_mean import mean_over_teachers, require_same_classes
from ..errors import ConfigError, PathError, UserError, did_you_mean
from ..families import Family
from ..losses.reduction import rank_weights
from ..nested import tensors_of
from ..recorder import Source
from ..teachers import TEACHER
from ..types import Detector
from .gradient_ratio import gradient_ratio
from .schedule import Schedule

ENTRY_KEYS = (
    *('student', 'teacher', 'teacher_name', 'align', 'connector', 'teacher_connector'),
    *('schedule', 'loss_weight'),
)
# Matches messages that start with a key of the entry, such as "align.select: must be …".
STARTS_WITH_KEY = re.compile(rf'(?:type|{"|".join(ENTRY_KEYS)})[\w.\[\]]*: ')
# The kinds of targets that a loss may need, with the alignment that provides each.
TARGETS = {
    'class': "align=dict(type='RoIClassAlignment') with the student's proposals",
    'box': "align=dict(type='RoIBoxAlignment') with the student's proposals",
    'foreground': "align=dict(type='ForegroundFeatureAlignment')",
}


class LossEntry:
    """One distillation loss: the outputs to compare, their alignment, the loss, its schedule and weight.

    Args:
        name: The key in ``losses`` and in the log. It must contain ``loss``: mmengine sums only such keys.
        config: ``type`` and arguments of the loss, and these keys:

            - ``align``: the alignment, a name or a dict. Default: ``FeatureAlignment``.
            - ``student`` and ``teacher``: the outputs to record (:class:`mmkd.recorder.Source`). Most
              alignments have a default (:attr:`Alignment.default_module`). ``FeatureAlignment`` has none:
              give both, or one of them if the path is the same in both models.
            - ``teacher_name``: which teacher this loss uses if there are several; or a dict with the weight
              of each teacher in a mean over them.
            - ``connector``: a trained module that is applied to the student's output, or a list of modules
              that are applied in order. ``teacher_connector`` is the same for the teacher's output.
            - ``schedule``: arguments of :class:`mmkd.distillers.schedule.Schedule`.
            - ``loss_weight``: a number, default 1. To measure it: ``'auto'``, or a dict of arguments of
              :class:`mmkd.distillers.gradient_ratio.GradientRatio`.

    A loss on maps receives :attr:`Pair.mask` if its ``forward`` has an argument ``mask``. Otherwise both
    maps are set to 0 outside the mask.

    Raises:
        ConfigError: The entry is incomplete or has unknown arguments.

    Examples:
        >>> from mmkd.distillers import LossEntry
        >>> entry = LossEntry('loss_kd_cls', dict(type='KLDivergence', tau=2.5, align='RoIClassAlignment'))
        >>> entry.loss.tau, type(entry.align).__name__, entry.loss_weight
        (2.5, 'RoIClassAlignment', 1.0)
        >>> LossEntry('loss_kd', dict(type='CWD', student='neck', schedule=dict(end=10))).schedule.end
        10
    """

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        self.name = name
        with self.prefix_errors():
            if 'loss' not in name or '.' in name:
                raise ConfigError(
                    "the name must contain 'loss' and no dot, else mmengine does not add it to the total; "
                    'rename the entry'
                )
            config = dict(config)
            own = {key: config.pop(key) for key in ENTRY_KEYS if key in config}
            if 'type' not in config:
                raise ConfigError("type: not given; name a loss such as 'KLDivergence'")
            #: Measures the weight; None if the config sets a number.
            self.ratio = gradient_ratio(own.get('loss_weight'))
            self._weight = 1.0 if self.ratio else _number(own.get('loss_weight', 1.0))
            try:
                self.schedule = Schedule(**(own.get('schedule') or {}))
            except TypeError as error:
                raise ConfigError(f'schedule: {_constructor_message(error)}') from None
            self.loss: nn.Module = build(MODELS, config)
            if any(True for _ in self.loss.parameters()):
                raise ConfigError(
                    f'type: a loss must have no parameters, because no optimizer trains them, but '
                    f'{type(self.loss).__name__} has some; move them to a connector'
                )
            self._takes_mask = 'mask' in inspect.signature(self.loss.forward).parameters
            #: The kind of target that the loss needs, a key of :data:`TARGETS`, or None.
            self.needs_target: str | None = getattr(self.loss, 'needs_target', None)
            if self.needs_target and self.needs_target not in TARGETS:
                raise ConfigError(
                    f'{type(self.loss).__name__}.needs_target must be one of {(*TARGETS,)}, got '
                    f'{self.needs_target!r}'
                )
            #: The share of each teacher in the mean over teachers, by name.
            self.shares = teacher_shares(own.get('teacher_name', TEACHER))
            #: One alignment per teacher, by the name of the teacher.
            self.aligns: dict[str, Alignment] = {
                teacher: build(TASK_UTILS, own.get('align') or 'FeatureAlignment', 'align')
                for teacher in self.shares
            }
            #: The sources that the config sets, by model; None if the alignment has a default.
            self._given = _given_sources(own, self.align)
            for align in self.aligns.values():
                align.bind(self._given['student'], self._given['teacher'], bool(self.needs_target))
            if len(self.shares) > 1 and own.get('teacher_connector'):
                raise ConfigError(
                    'teacher_connector: supports one teacher, but teacher_name names several; write one '
                    'entry per teacher'
                )
            #: The connectors of this entry, by the model (``student`` or ``teacher``) that they belong to.
            self.connectors: dict[str, nn.Module] = {
                side: _connector(own[key], key)
                for side, key in (('student', 'connector'), ('teacher', 'teacher_connector'))
                if own.get(key)
            }
            for align in self.aligns.values():
                align.connected = 'student' in self.connectors

    @contextmanager
    def prefix_errors(self) -> Iterator[None]:
        """Return a context that adds the name of this entry to every UserError."""
        try:
            yield
        except UserError as error:
            message, entry = str(error), f'losses.{self.name}'
            if not message.startswith(entry):
                link = '.' if STARTS_WITH_KEY.match(message) else ': '
                error.args = (entry + link + message,)
            raise

    @property
    def loss_weight(self) -> float:
        """The weight of the loss. A measured weight is 1 before the first measurement."""
        return self.ratio.weight if self.ratio else self._weight

    @property
    def align(self) -> Alignment:
        """The alignment of the first teacher."""
        return next(iter(self.aligns.values()))

    @property
    def student(self) -> Source:
        """The recorded output of the student; a default is set by :meth:`check`."""
        return self.align.student

    @property
    def teacher(self) -> Source:
        """The recorded output of the first teacher; a default is set by :meth:`check`."""
        return self.align.teacher

    def student_sources(self, teacher: str) -> list[Source]:
        """Return the student's outputs to record for a teacher."""
        return [self.aligns[teacher].student, *self.aligns[teacher].student_sources]

    def teacher_sources(self, teacher: str) -> list[Source]:
        """Return the outputs to record of a teacher."""
        return [self.aligns[teacher].teacher, *self.aligns[teacher].teacher_sources]

    def teacher_parts(self, teacher: str, family: Family) -> set[str]:
        """Return the parts of a teacher that must run for this entry."""
        part_of = family.joint_part_of if self.aligns[teacher].joint else family.part_of
        return {part_of(source) for source in self.teacher_sources(teacher)}

    def check(
        self, student: Detector, teacher: Detector, options: dict[str, Any], name: str = TEACHER
    ) -> None:
        """Check that this entry can compare the two models; called before the first iteration.

        Args:
            student: The student model.
            teacher: The teacher's model.
            options: The teacher's options.
            name: The name of the teacher.

        Raises:
            ConfigError, PathError: It cannot; the message names the entry.
        """
        align = self.aligns[name]
        with self.prefix_errors():
            ours, theirs = (
                self._given[owner] or align.default_source(owner, model)
                for owner, model in (('student', student), ('teacher', teacher))
            )
            align.bind(ours, theirs, bool(self.needs_target))
            align.check(student, teacher, options)
            if self.needs_target and self.needs_target != align.target:
                raise self._no_target()
            wanted, given = (getattr(it, 'activation', None) for it in (self.loss, align))
            if wanted and given and wanted != given:
                raise ConfigError(
                    f'activation must be {given!r}, which the heads use, got {wanted!r}; set '
                    f'activation={given!r}'
                )
            wanted, given = (getattr(it, 'box_format', None) for it in (self.loss, align))
            if wanted and given and wanted != given:
                raise ConfigError(
                    f'align.box_format: must be {wanted!r} for {type(self.loss).__name__}, got {given!r}'
                )
            if self.ratio:
                self.ratio.check(student)
            if len(self.aligns) > 1 and not align.can_average_teachers:
                raise ConfigError(
                    f'teacher_name: must name one teacher, because the rows of this '
                    f'{type(align).__name__} depend on the teacher and cannot be averaged; write one '
                    f'entry per teacher'
                )

    def __call__(self, steps: Mapping[str, Step], factor: float = 1.0) -> Tensor:
        """Compute the weighted loss of one step, the mean over pairs (levels).

        Args:
            steps: The data of the step, by teacher.
            factor: The factor of the schedule.

        Returns:
            A scalar. A measured weight is applied later, because it depends on all losses of the step.
        """
        with self.prefix_errors():
            step = next(iter(steps.values()))
            student = self.align.student_output(step)
            if getattr(step.student, 'training', False) and torch.is_grad_enabled():
                self._require_gradient(student)
            pairs = self._pairs(student, steps)
            values = torch.stack([self._value(pair) for pair in pairs])
            if self.align.reduces_over_ranks and get_world_size() > 1:
                values = values * rank_weights(
                    torch.stack([torch.as_tensor(pair.divisor) for pair in pairs])
                )
            return values.mean() * (self._weight * factor)

    def _require_gradient(self, student: Any) -> None:
        """Raise a ConfigError if no part of the recorded output has a gradient."""
        found = tensors_of(student)
        if found and not any(each.requires_grad for each in found):
            raise ConfigError(
                f"student: the output of '{self.student}' has no gradient, so this loss trains nothing: its "
                f'weights are frozen (frozen_stages) or inside activation checkpointing (with_cp=True); '
                f'record a later module, or turn that option off'
            )

    def _pairs(self, student: Any, steps: Mapping[str, Step]) -> list[Pair]:
        """The pairs to compare, one per level; with several teachers, their mean."""
        if 'student' in self.connectors:
            student = self.connectors['student'](student)
        pairs = []
        for name, align in self.aligns.items():
            teacher = steps[name].teacher_record[align.teacher]
            if 'teacher' in self.connectors:
                teacher = self.connectors['teacher'](teacher)
            pairs.append(align(student, teacher, steps[name]))
        if len(pairs) == 1:
            return pairs[0]
        require_same_classes([it.class_map for it in steps.values() if it.class_map is not None])
        return mean_over_teachers(pairs, list(self.shares.values()), self.align.activation)

    def _value(self, pair: Pair) -> Tensor:
        """The loss of one pair, a scalar."""
        student, teacher, more = pair.student, pair.teacher, {}
        if self.needs_target:
            if pair.target is None:
                raise self._no_target()
            more['target'] = pair.target
        if pair.mask is not None and self._takes_mask:
            more['mask'] = pair.mask
        elif pair.mask is not None:
            student, teacher = (it.masked_fill(~pair.mask[:, None], 0) for it in (student, teacher))
        value = self.loss(student, teacher, pair.weight, **more)
        return value if pair.total is None else value * (pair.weight_sum / pair.total)

    def _no_target(self) -> ConfigError:
        return ConfigError(
            f'align: must provide the labelled {self.needs_target} of each row or map for '
            f'{type(self.loss).__name__}, which {type(self.align).__name__} does not here; use '
            f'{TARGETS[str(self.needs_target)]}'
        )


def _given_sources(own: Mapping[str, Any], align: Alignment) -> dict[str, Source | None]:
    """The sources that an entry sets, by model; None if it leaves one to the alignment's default.

    Raises:
        ConfigError: The entry sets none and the alignment has no default.
    """
    given = {
        owner: Source.parse(own[owner]) if own.get(owner) else None
        for owner in ('student', 'teacher')
    }
    if align.default_module is None:
        either = given['student'] or given['teacher']
        if either is None:
            raise ConfigError(
                f'student: not given, and {type(align).__name__} has no default; name a module such as '
                f"'neck'"
            )
        given = {owner: source or either for owner, source in given.items()}
    return given


def teacher_shares(teachers: Any) -> dict[str, float]:
    """Return the share of each teacher in a loss, by name. The shares sum to 1.

    Args:
        teachers: The name of a teacher, or weights by name.

    Raises:
        ConfigError: The value is neither, or a weight is not above 0.
    """
    if isinstance(teachers, str):
        return {teachers: 1.0}
    if not isinstance(teachers, dict) or not teachers or min(teachers.values()) <= 0:
        raise ConfigError(
            f'teacher_name: must be the name of a teacher, or a dict of weights above 0 such as '
            f'dict(first=0.5, second=0.5), got {teachers!r}'
        )
    total = sum(teachers.values())
    return {name: weight / total for name, weight in teachers.items()}


def _number(weight: Any) -> float:
    try:
        value = -1.0 if isinstance(weight, bool) else float(weight)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < math.inf:
        raise ConfigError(
            f"loss_weight: must be a number of at least 0, 'auto' or dict(ratio=…), got {weight!r}"
        )
    return value


def _connector(config: Any, key: str) -> nn.Module:
    if not isinstance(config, (list, tuple)):
        return build(MODELS, config, key)
    return nn.Sequential(*(build(MODELS, each, f'{key}[{i}]') for i, each in enumerate(config)))


def build(registry: Any, config: str | dict[str, Any], key: str = '') -> Any:
    """Build an object from a registry.

    Args:
        registry: The registry.
        config: A name, or a dict with ``type`` and arguments.
        key: The key of the config in the entry, for messages.

    Raises:
        ConfigError, PathError: The type or an argument is wrong; the message lists similar types.
    """
    config = dict(type=config) if isinstance(config, str) else config
    if not isinstance(config, dict) or 'type' not in config:
        raise ConfigError(f'{key}: must be a name or a dict with a type, got {config!r}')
    kind = config['type']
    if isinstance(kind, str) and registry.get(kind) is None:
        raise PathError(
            f"{'.'.join(filter(None, (key, 'type')))}: '{kind}' is not registered"
            f'{did_you_mean(kind, registry.module_dict)}'
        )
    try:
        return registry.build(dict(config))
    except TypeError as error:
        found = f'{kind}: {_constructor_message(error)}'
        raise ConfigError(f'{key}: {found}' if key else found) from None


def _constructor_message(error: TypeError) -> str:
    """The message without the constructor's name."""
    return str(error).split('__init__() ')[-1]
