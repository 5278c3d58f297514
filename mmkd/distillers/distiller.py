"""The model that is trained: a student, with a teacher beside it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.dist import is_distributed
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..alignments import ClassMap
from ..errors import ConfigError, UserError, did_you_mean
from ..families import family_of
from ..random_state import preserve_rng_state
from ..teachers import TEACHER, DeclaredTeachers, Teacher
from ..types import Detector
from .gradient_ratio import measure_weights, task_losses
from .inheritance import depends_on_classes, inherit, require_modules
from .loss_entry import LossEntry
from .step import StepRecorders, UncopiedDict

CONNECTORS = 'connectors'
FSDP_PREFIX = '_fsdp_wrapped_module.'
OPTIONS = (
    *('student', 'teacher', 'teachers', 'losses', 'task_losses', 'init_student'),
    *('class_map', 'classes'),
)


@MODELS.register_module()
class Distiller(BaseModel):
    """Trains a detector on its own losses and on a teacher's outputs for the same images.

    To everything outside it *is* the student: it has the student's modules under the student's
    names, so that its checkpoints, optimizer groups and hooks are those of plain MMDetection. Only
    the connectors are added; they are trained with the rest, and kept out of ``state_dict``
    (:class:`mmkd.hooks.DistillationHook` saves them beside it). The teacher is built when training
    starts and never for testing.

    Args:
        student: Model config of any MMDetection detector.
        teacher: Arguments of :class:`mmkd.teachers.LiveTeacher`; or ``dict(ema=…)``, those of
            :class:`mmkd.teachers.AveragedTeacher`; or ``dict(cache=…)``, those of
            :class:`mmkd.teachers.CachedTeacher`.
        teachers: More teachers by name, likewise; losses name theirs by ``teacher_name``. That of
            ``teacher`` is called ``teacher``.
        losses: Distillation losses by name; each is a config as :class:`LossEntry` reads it. With
            none, training is plain MMDetection's.
        task_losses: Whether the student's own losses count. Without them it learns from the teacher
            alone, and images need no labels.
        init_student: What the student starts with: ``dict(from_teacher=[…])``, module paths whose
            weights it takes from a teacher (:func:`mmkd.distillers.inheritance.inherit`), of several
            from the one that ``teacher_name`` names.
        class_map: Arguments of :class:`mmkd.alignments.ClassMap` beside the names.
        classes: The student's class names, in order. Default: those of the training data.

    Raises:
        ConfigError, PathError: A config value does not hold; the message names the key.
    """

    def __init__(
        self,
        student: dict[str, Any],
        teacher: dict[str, Any] | None = None,
        losses: dict[str, dict[str, Any]] | None = None,
        teachers: dict[str, dict[str, Any]] | None = None,
        task_losses: bool = True,
        init_student: dict[str, Any] | None = None,
        class_map: dict[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            wrong = next(iter(unknown))
            raise ConfigError(
                f'model.{wrong}: a Distiller has no such option{did_you_mean(wrong, OPTIONS)}'
            )
        student = MODELS.build(copy.deepcopy(student))  # detectors write into their config
        with preserve_rng_state():  # connectors must not shift the student's random numbers
            self.entries = {
                name: LossEntry(name, config) for name, config in (losses or {}).items() if config
            }
        self.inherited_modules, self._inherits_from = _modules_to_inherit(init_student)
        readers = {t: f'losses.{name}' for name, it in self.entries.items() for t in it.aligns}
        #: Names of the teachers that losses compare with.
        self._compared = list(readers)
        if self.inherited_modules:
            readers.setdefault(self._inherits_from, 'init_student')
        #: The teachers, by name, as far as they are loaded.
        self.teachers = DeclaredTeachers(teacher, teachers, readers)
        if self.inherited_modules and self.teachers.is_average(self._inherits_from):
            raise ConfigError('init_student: the average of the student has nothing to hand down')
        if not task_losses and not self.entries:
            raise ConfigError('task_losses=False, but no losses: the student would learn nothing')
        for entry in self.entries.values():
            if entry.ratio and not task_losses:
                raise ConfigError(
                    f'losses.{entry.name}.loss_weight: is measured against the task losses, but '
                    f'task_losses=False; give a number'
                )
        self.task_losses = task_losses
        self._adopt_student_modules(student)
        connectors = {
            entry.name + ('' if side == 'student' else '/teacher'): connector
            for entry in self.entries.values()
            for side, connector in entry.connectors.items()
        }
        if connectors:
            self.add_module(CONNECTORS, nn.ModuleDict(connectors))
        self.class_maps: dict[str, ClassMap] = {}
        self.classes = classes
        #: Whether a DistillationHook looks after this model.
        self.has_hook = False
        #: Arguments of :class:`ClassMap` beside the names.
        self.class_map_config = class_map or {}
        self._recorders: dict[tuple[str, ...], StepRecorders] = UncopiedDict()

    @property
    def teacher(self) -> Teacher | None:
        """The first of its teachers, None as long as none is loaded."""
        return next(iter(self.teachers.values()), None)

    # ------------------------------------------------------------------ the training step

    def forward(
        self, inputs: Tensor, data_samples: SampleList | None = None, mode: str = 'tensor'
    ) -> Any:
        """As the student's; with ``mode='loss'`` the distillation losses are added."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        return self.student(inputs, data_samples, mode)

    def loss(self, inputs: Tensor, data_samples: SampleList) -> dict[str, Tensor]:
        """One training step's losses: the student's own, and the active distillation losses.

        Args:
            inputs: Images as the student's data preprocessor made them, shape (N, 3, H, W).
            data_samples: Their ground truth and meta information.

        Returns:
            Losses by name, each a scalar or a list of scalars.
        """
        factors = {name: entry.schedule() for name, entry in self.entries.items()}
        active = tuple(name for name, factor in factors.items() if factor > 0)
        if not active:
            return self._task_losses(inputs, data_samples) | self._idle_connectors(active)
        self.prepare()
        record = self._recorders_of(active)
        given = (inputs, data_samples, self.data_preprocessor, record.student)
        try:
            # Teachers first where they can be: then their activations are gone when the student's come.
            for teacher in record.before_student:
                teacher.run_teacher(*given)
            with record.student:
                losses = self._task_losses(inputs, data_samples, record)
            for teacher in record.after_student:
                teacher.run_teacher(*given)
            record.run_joint_parts()
            for name in active:
                if name in losses:
                    raise ConfigError(f"losses.{name}: the student has a loss '{name}' of its own")
                steps = record.steps(self.entries[name], data_samples)
                losses[name] = self.entries[name](steps, factors[name])
        finally:
            record.clear()
        return self._apply_measured_weights(losses, factors) | self._idle_connectors(active)

    def _apply_measured_weights(
        self, losses: dict[str, Tensor], factors: dict[str, float]
    ) -> dict[str, Tensor]:
        """The losses of a step with the weights that are measured, and these for the log."""
        ratios = {
            name: entry.ratio
            for name, entry in self.entries.items()
            if entry.ratio and name in losses
        }
        if not ratios:
            return losses
        own = {name: losses[name] / factors[name] for name in ratios}
        measure_weights(ratios, own, task_losses(losses, self.entries), self.student)
        for name, ratio in ratios.items():
            losses[name] = losses[name] * ratio.weight
            # A name without `loss`, so that mmengine logs it and adds it to nothing.
            losses[name.replace('loss', 'weight')] = losses[name].new_tensor(ratio.weight)
        return losses

    def _task_losses(
        self, inputs: Tensor, data_samples: SampleList, record: StepRecorders | None = None
    ) -> dict[str, Tensor]:
        """The student's own losses; without labels it only computes what is recorded of it."""
        if self.task_losses:
            return self.student(inputs, data_samples, mode='loss')
        if record is None:
            raise ConfigError(
                'task_losses=False, but no distillation loss is active in this iteration'
            )
        parts = record.parts_of(self.student)
        family_of(self.student).run(inputs, data_samples, parts, record.student)
        return {}

    # ------------------------------------------------------------------ before the first step

    def init_weights(self) -> None:
        """Initialise the student as it does itself, load the teacher and take over its weights.

        mmengine calls this when training starts, before a checkpoint is loaded, and never for testing.
        """
        self.student.init_weights()
        for name in self.teachers.used:
            if not self.teachers.is_average(name):  # there is nothing to average yet
                self._load_teacher(name)
        if self.inherited_modules:
            modules = self.inherited_modules
            teacher = self.teachers.load_with_weights(self._inherits_from)
            # Encoder and decoder can be inherited for classes the teacher has never heard of.
            named = depends_on_classes(self.student, modules)
            classes = self._pair_classes(self._inherits_from) if named else None
            report = inherit(self.student, teacher.detector, modules, classes)
            MMLogger.get_current_instance().info(f'init_student: {report}')
        self.teachers.keep_only(self._compared)

    def prepare(self) -> None:
        """Load the teachers, pair the classes and check every loss entry; at most once.

        Raises:
            ConfigError, PathError: What does not fit, with the loss entry it concerns.
        """
        if self._recorders or not self.entries:
            return
        self._check_hook()
        for problem in self.problems():
            raise problem

    def problems(self) -> Iterator[UserError]:
        """What does not fit of the teachers, the classes and each loss entry; loads the teachers."""
        complete = True
        try:
            require_modules('student', self.student, self.inherited_modules)
        except UserError as error:
            yield error
        for name in (name for name in self.teachers.used if name in self._compared):
            try:
                teacher = self._load_teacher(name)
            except UserError as error:
                complete = False
                yield error
                continue
            entries = [entry for entry in self.entries.values() if name in entry.aligns]
            sound = []
            for entry in entries:
                try:
                    entry.check(self.student, teacher.detector, teacher.options, name)
                    sound.append(entry)
                except UserError as error:
                    yield error
            try:
                if any(entry.aligns[name].needs_class_map for entry in sound):
                    self.class_maps[name] = self._pair_classes(name)
                teacher.require(sound, name, self.class_maps.get(name))
                if sound == entries:
                    continue
            except UserError as error:
                yield error
            complete = False
        if complete:
            try:
                self._recorders_of(tuple(self.entries))
            except UserError as error:
                yield error

    def _check_hook(self) -> None:
        """Whether what lies beside the student is saved with it."""
        hub = MessageHub.get_current_instance()
        averages = any(self.teachers.is_average(name) for name in self._compared)
        beside = bool(self.connector_state()) or averages
        if hub.get_info('loop_stage') == 'train' and not self.has_hook:
            todo = (
                "train with mmkd's tools, which add the DistillationHook, or add it to the config: "
                "default_hooks=dict(distillation=dict(type='DistillationHook'))"
            )
            if beside:
                what = "student's average" if averages else 'connectors of the losses'
                raise ConfigError(f'default_hooks: checkpoints would lose the {what}; {todo}')
            MMLogger.get_current_instance().warning(
                f'default_hooks: no DistillationHook, the data is not checked before the first iteration; '
                f'{todo}'
            )

    def _load_teacher(self, name: str) -> Teacher:
        return self.teachers.load(name, self.student, self._student_classes())

    def _student_classes(self) -> Sequence[str] | None:
        meta = MessageHub.get_current_instance().get_info('dataset_meta') or {}
        return self.classes or meta.get('classes')

    def _pair_classes(self, name: str) -> ClassMap:
        classes, teacher = self._student_classes(), self.teachers[name]
        if not classes:
            raise ConfigError("the student's class names are not known; set model.classes to them")
        if not teacher.classes:
            raise ConfigError(
                teacher.classes_error
                or 'the class names of the teacher are neither in its checkpoint nor in its config; set '
                f'model.{self.teachers.config_key(name)}.classes to them'
            )
        count = family_of(self.student).num_classes()
        if count is not None and count != len(classes):
            raise ConfigError(
                f'the student was built for {count} classes, but its data has {len(classes)}; set '
                f'num_classes of its heads in model.student'
            )
        try:
            return ClassMap(classes, teacher.classes, **self.class_map_config)
        except TypeError as error:
            raise ConfigError(f'class_map: {str(error).split("__init__() ")[-1]}') from None

    def _recorders_of(self, active: tuple[str, ...]) -> StepRecorders:
        if active not in self._recorders:
            entries = [self.entries[name] for name in active]
            self._recorders[active] = StepRecorders(
                entries, self.student, self.teachers, self.class_maps
            )
        return self._recorders[active]

    # ------------------------------------------------------------------ being the student

    def _adopt_student_modules(self, student: Detector) -> None:
        """Take over the student's tables of modules, parameters and buffers.

        The tables of tensors are the student's own objects, so that whatever replaces a tensor does so
        for both; the table of modules is a copy, since connectors are added to it. A class made of the
        student's own and a mixin would need no copy, but then the student has the connectors too: in its
        average, in what counts and loads its weights, and beside whatever it calls by the same names.
        """
        for table in ('_parameters', '_buffers', '_non_persistent_buffers_set'):
            self.__dict__[table] = student.__dict__[table]
        self.__dict__['_modules'] = student._modules.copy()
        # Past nn.Module's __setattr__, which would add the student as a module of its own.
        self.__dict__['student'] = student
        # mmengine's get_state_dict runs this hook, but not an overridden state_dict().
        self._register_state_dict_hook(_drop_connectors)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        student = self.__dict__.get('student')
        if student is not None and name in student._modules:
            student._modules[name] = value  # wrapped, as FSDP does with the modules in a model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if 'student' not in self.__dict__:
                raise
            return getattr(self.__dict__['student'], name)

    def train(self, mode: bool = True) -> Distiller:
        self.training = mode
        self.student.train(mode)
        if CONNECTORS in self._modules:
            self._modules[CONNECTORS].train(mode)
        return self

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.student.parse_losses(losses)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # The student may rename keys of older checkpoints here, as mmdet's detectors do.
        self.student._load_from_state_dict(state_dict, prefix, *args)
        # Connectors are not part of it, so they are never missing: give them what they have.
        for key, value in self.connector_state().items():
            state_dict.setdefault(f'{prefix}{CONNECTORS}.{key}', value)

    def connector_state(self) -> dict[str, Tensor]:
        """The connectors' ``state_dict``; empty where there are none."""
        connectors = self._modules.get(CONNECTORS)
        return {} if connectors is None else connectors.state_dict()

    def load_connector_state(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`connector_state` gave.

        Raises:
            ConfigError: It belongs to other connectors.
        """
        own = self.connector_state()
        shapes = {key: tuple(value.shape) for key, value in own.items()}
        given = {key: tuple(value.shape) for key, value in state.items()}
        if shapes != given:
            differing = sorted(
                key for key in shapes.keys() | given.keys() if shapes.get(key) != given.get(key)
            )
            raise ConfigError(
                f'the checkpoint holds other connectors than the losses declare ({", ".join(differing)} '
                f'differ); resume with the losses it was written with, or start from it with load_from'
            )
        if state:
            self._modules[CONNECTORS].load_state_dict(state)

    def weight_state(self) -> dict[str, dict[str, float]]:
        """What was measured for the weights of losses, by their names; empty where none is measured."""
        return {name: it.ratio.state() for name, it in self.entries.items() if it.ratio}

    def load_weight_state(self, state: dict[str, dict[str, float]]) -> None:
        """Restore what :meth:`weight_state` gave; losses that were not measured then start anew."""
        for name, entry in self.entries.items():
            if entry.ratio and name in state:
                entry.ratio.load_state(state[name])

    def _idle_connectors(self, active: tuple[str, ...]) -> dict[str, Tensor]:
        """Zero losses through the connectors of inactive entries: DDP waits for every gradient."""
        if not is_distributed():
            return {}
        return {
            name: 0.0
            * sum(
                (w.sum() for c in entry.connectors.values() for w in c.parameters()),
                torch.zeros(()),
            )
            for name, entry in self.entries.items()
            if entry.connectors and name not in active
        }


def _modules_to_inherit(init_student: dict[str, Any] | None) -> tuple[list[str], str]:
    """The modules, and the teacher they are taken from."""
    config = dict(init_student or {})
    modules = config.pop('from_teacher', [])
    teacher = config.pop('teacher_name', TEACHER)
    if config:
        wrong = next(iter(config))
        known = ['from_teacher', 'teacher_name']
        raise ConfigError(f'init_student.{wrong}: unknown{did_you_mean(wrong, known)}')
    if isinstance(modules, str):
        raise ConfigError(f"init_student.from_teacher='{modules}' must be a list of module paths")
    return list(modules or []), teacher


def _drop_connectors(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    if prefix.endswith(FSDP_PREFIX):
        return  # FSDP misses what it has gathered; the DistillationHook takes them out after it
    for key in [key for key in state if key.startswith(f'{prefix}{CONNECTORS}.')]:
        del state[key]
