"""The model that is trained: a student, with a teacher beside it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.dist import is_distributed
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..alignments import ClassMap, Step
from ..errors import ConfigError, near
from ..families import family_of
from ..random_state import preserve_rng_state
from .inheritance import depends_on_classes, inherit
from .loss_entry import LossEntry
from .step_recorders import PerModel, StepRecorders
from .teacher import Teacher

CONNECTORS = 'connectors'


@MODELS.register_module()
class Distiller(BaseModel):
    """Trains a detector on its own losses and on what a teacher says about the same images.

    To everything outside it *is* the student: it has the student's modules under the student's
    names, so that its checkpoints, optimizer groups and hooks are those of plain MMDetection. Only
    the connectors are added; they are trained with the rest, and kept out of ``state_dict``
    (:class:`mmkd.hooks.DistillationHook` saves them beside it). The teacher is built when training
    starts and never for testing.

    Args:
        student: Model config of any MMDetection detector.
        teacher: Arguments of :class:`mmkd.distillers.teacher.Teacher`.
        losses: Distillation losses by name; each is a config as :class:`LossEntry` reads it. With
            none, training is plain MMDetection's.
        init_student: What the student starts with: ``dict(from_teacher=[…])``, module paths whose
            weights it takes from the teacher (:func:`mmkd.distillers.inheritance.inherit`).
        class_map: Arguments of :class:`mmkd.alignments.ClassMap` beside the names.
        classes: The student's class names, in order. By default the training data tells them.

    Raises:
        ConfigError, PathError: A config value does not hold; the message names the key.
    """

    def __init__(
        self,
        student: dict[str, Any],
        teacher: dict[str, Any] | None = None,
        losses: dict[str, dict[str, Any]] | None = None,
        init_student: dict[str, Any] | None = None,
        class_map: dict[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            known = ('student', 'teacher', 'losses', 'init_student', 'class_map', 'classes')
            wrong = next(iter(unknown))
            raise ConfigError(f'model.{wrong}: a Distiller has no such option{near(wrong, known)}')
        student = MODELS.build(copy.deepcopy(student))  # detectors write into their config
        with preserve_rng_state():  # connectors must not shift the student's random numbers
            self.entries = {
                name: LossEntry(name, config) for name, config in (losses or {}).items() if config
            }
        self.inherited_modules = _modules_to_inherit(init_student)
        if (self.entries or self.inherited_modules) and not teacher:
            what = 'losses are' if self.entries else 'init_student is'
            raise ConfigError(f'{what} declared, but no teacher')
        self._wear(student)
        connectors = {
            entry.name + ('' if side == 'student' else '/teacher'): connector
            for entry in self.entries.values()
            for side, connector in entry.connectors.items()
        }
        if connectors:
            self.add_module(CONNECTORS, nn.ModuleDict(connectors))
        self.teacher: Teacher | None = None
        self.class_map: ClassMap | None = None
        self.classes = classes
        #: Whether a DistillationHook looks after this model.
        self.attended = False
        self._teacher_config = teacher
        self._class_map_config = class_map or {}
        self._recorders: dict[tuple[str, ...], StepRecorders] = PerModel()

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
            return self.student(inputs, data_samples, mode='loss') | self._idle_connectors(active)
        self.prepare()
        record = self._recorders_of(active)
        memo: dict[Any, Any] = {}
        try:
            with record.student:
                losses = self.student(inputs, data_samples, mode='loss')
            with record.teacher:
                shared = self.teacher(
                    inputs, data_samples, self.data_preprocessor, record.parts, record.student
                )
            if record.joint is not None:
                (of_student, of_teacher), (ours, theirs) = record.joint, record.joint_parts
                with of_teacher:
                    self.teacher.follow(record.teacher, shared, theirs)
                with of_student:
                    self.teacher.family.follow(self.student, record.student, shared, ours)
            for name in active:
                if name in losses:
                    raise ConfigError(f"losses.{name}: the student has a loss '{name}' of its own")
                step = Step(
                    data_samples=data_samples,
                    student=self.student,
                    teacher=self.teacher.detector,
                    student_record=record.of[name][0],
                    teacher_record=record.of[name][1],
                    class_map=self.class_map,
                    shared=shared,
                    memo=memo,
                )
                losses[name] = self.entries[name](step, factors[name])
        finally:
            record.clear()
        return losses | self._idle_connectors(active)

    # ------------------------------------------------------------------ before the first step

    def init_weights(self) -> None:
        """Initialise the student as it does itself, load the teacher and take over its weights.

        mmengine calls this when training starts, before a checkpoint is loaded, and never for testing.
        """
        self.student.init_weights()
        if self.entries or self.inherited_modules:
            self._load_teacher()
        if self.inherited_modules:
            modules = self.inherited_modules
            # Encoder and decoder can be inherited for classes the teacher has never heard of.
            named = depends_on_classes(self.student, modules)
            classes = self._pair_classes(self.classes) if named else None
            report = inherit(self.student, self.teacher.detector, modules, classes)
            MMLogger.get_current_instance().info(f'init_student: {report}')
        if not self.entries:
            self.teacher = None

    def prepare(self) -> None:
        """Load the teacher, pair the classes and check every loss entry; at most once.

        Raises:
            ConfigError, PathError: What does not fit, with the loss entry it concerns.
        """
        if self._recorders or not self.entries:
            return
        hub = MessageHub.get_current_instance()
        if self.connector_state() and hub.get_info('loop_stage') == 'train' and not self.attended:
            raise ConfigError(
                'checkpoints would lose the connectors of the losses; add to the config: '
                "default_hooks=dict(distillation=dict(type='DistillationHook'))"
            )
        self._load_teacher()
        for entry in self.entries.values():
            entry.check(self.student, self.teacher.detector, self.teacher.family.options)
        if any(entry.align.needs_class_map for entry in self.entries.values()):
            self.class_map = self._pair_classes(self.classes)
        self._recorders_of(tuple(self.entries))

    def _load_teacher(self) -> None:
        if self.teacher is not None:
            return
        try:
            self.teacher = Teacher(**self._teacher_config)
        except TypeError as error:
            if '__init__() ' not in str(error):
                raise
            raise ConfigError(f'teacher: {error}') from None

    def _pair_classes(self, classes: Sequence[str] | None) -> ClassMap:
        if classes is None:
            meta = MessageHub.get_current_instance().get_info('dataset_meta') or {}
            classes = meta.get('classes')
        if not classes:
            raise ConfigError("the student's class names are not known; set model.classes to them")
        if not self.teacher.classes:
            raise ConfigError(
                'the class names of the teacher are neither in its checkpoint nor in its config; set '
                'model.teacher.classes to them'
            )
        count = family_of(self.student).num_classes()
        if count is not None and count != len(classes):
            raise ConfigError(
                f'the student was built for {count} classes, but its data has {len(classes)}; set '
                f'num_classes of its heads in model.student'
            )
        try:
            return ClassMap(classes, self.teacher.classes, **self._class_map_config)
        except TypeError as error:
            raise ConfigError(f'class_map: {str(error).split("__init__() ")[-1]}') from None

    def _recorders_of(self, active: tuple[str, ...]) -> StepRecorders:
        if active not in self._recorders:
            entries = [self.entries[name] for name in active]
            self._recorders[active] = StepRecorders(entries, self.student, self.teacher)
        return self._recorders[active]

    # ------------------------------------------------------------------ being the student

    def _wear(self, student: nn.Module) -> None:
        """Take over the student's tables of modules, parameters and buffers.

        The tables of tensors are the student's own objects, so that whatever replaces a tensor does so
        for both; the table of modules is a copy, since connectors are added to it.
        """
        for table in ('_parameters', '_buffers', '_non_persistent_buffers_set'):
            self.__dict__[table] = student.__dict__[table]
        self.__dict__['_modules'] = student._modules.copy()
        # Past nn.Module's __setattr__, which would add the student as a module of its own.
        self.__dict__['student'] = student
        # mmengine's get_state_dict runs this hook, but not an overridden state_dict().
        self._register_state_dict_hook(_drop_connectors)

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

    def _idle_connectors(self, active: tuple[str, ...]) -> dict[str, Tensor]:
        """Zero losses through the connectors of inactive entries: DDP waits for every gradient."""
        if not is_distributed():
            return {}
        return {
            name: sum(w.sum() for c in entry.connectors.values() for w in c.parameters()) * 0.0
            for name, entry in self.entries.items()
            if entry.connectors and name not in active
        }


def _modules_to_inherit(init_student: dict[str, Any] | None) -> list[str]:
    config = dict(init_student or {})
    modules = config.pop('from_teacher', [])
    if config:
        wrong = next(iter(config))
        raise ConfigError(f'init_student.{wrong}: unknown{near(wrong, ["from_teacher"])}')
    if isinstance(modules, str):
        raise ConfigError(f"init_student.from_teacher='{modules}' must be a list of module paths")
    return list(modules or [])


def _drop_connectors(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    for key in [key for key in state if key.startswith(f'{prefix}{CONNECTORS}.')]:
        del state[key]
