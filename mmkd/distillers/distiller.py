"""The model that is trained: a student with its teachers and distillation losses."""

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
    """Trains a detector with its own losses and with distillation losses on the same images.

    From outside, a distiller looks like the student: it has the student's modules under the student's
    names. Its checkpoints, optimizer groups and hooks are those of plain MMDetection. Only the connectors
    are added. They are trained with the other modules and kept out of ``state_dict``;
    :class:`mmkd.hooks.DistillationHook` saves them separately. The teachers are built when training
    starts, and never for testing.

    Args:
        student: The model config of any MMDetection detector.
        teacher: The arguments of :class:`mmkd.teachers.LiveTeacher`; or ``dict(ema=…)``, those of
            :class:`mmkd.teachers.AveragedTeacher`; or ``dict(cache=…)``, those of
            :class:`mmkd.teachers.CachedTeacher`.
        teachers: More teachers of the same form, by name. A loss selects a teacher with ``teacher_name``;
            the name of ``teacher`` is ``teacher``.
        losses: Distillation losses by name, each a config of :class:`LossEntry`. Without losses, training
            equals plain MMDetection.
        task_losses: Whether to compute the student's own losses. With False, the student learns from the
            teachers only, and the images need no labels.
        init_student: Initial weights of the student. ``dict(from_teacher=[…])``: paths of modules that
            start with the teacher's weights (:func:`mmkd.distillers.inheritance.inherit`). If there are
            several teachers, ``teacher_name`` selects one.
        class_map: Arguments of :class:`mmkd.alignments.ClassMap` besides the class names.
        classes: The student's class names, in order. Default: those of the training data.

    Raises:
        ConfigError, PathError: A config value is invalid; the message names the key.

    Examples:
        >>> from mmdet.registry import MODELS
        >>> from mmengine.hub import get_config
        >>> from mmengine.registry import init_default_scope
        >>> import mmkd
        >>> init_default_scope('mmdet')
        >>> distiller = MODELS.build(dict(
        ...     type='Distiller',
        ...     student=get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model,
        ...     teacher=dict(config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', checkpoint='r50.pth'),
        ...     losses=dict(loss_kd=dict(type='CWD', tau=4.0, student='neck'))))
        >>> distiller.entries['loss_kd'].loss, distiller.teacher  # the teacher is loaded for training
        (CWD(), None)
        >>> distiller.backbone is distiller.student.backbone
        True
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
        student = MODELS.build(copy.deepcopy(student))  # detectors modify their config
        with preserve_rng_state():  # connectors must not consume the student's random numbers
            self.entries = {
                name: LossEntry(name, config) for name, config in (losses or {}).items() if config
            }
        self.inherited_modules, self._inherits_from = _modules_to_inherit(init_student)
        readers = {t: f'losses.{name}' for name, it in self.entries.items() for t in it.aligns}
        #: Names of the teachers that losses use.
        self._compared = list(readers)
        if self.inherited_modules:
            readers.setdefault(self._inherits_from, 'init_student')
        #: The loaded teachers, by name.
        self.teachers = DeclaredTeachers(teacher, teachers, readers)
        if self.inherited_modules and self.teachers.is_average(self._inherits_from):
            raise ConfigError(
                'init_student: must take weights from another detector, got the moving average of the '
                'student; name another teacher in init_student.teacher_name'
            )
        if not task_losses and not self.entries:
            raise ConfigError(
                'task_losses: False needs at least one distillation loss, got none; add one to losses'
            )
        for entry in self.entries.values():
            if entry.ratio and not task_losses:
                raise ConfigError(
                    f'losses.{entry.name}.loss_weight: must be a number with task_losses=False, because it '
                    f'is measured against the task losses; set a number'
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
        #: Whether a DistillationHook is registered for this model.
        self.has_hook = False
        #: Arguments of :class:`ClassMap` besides the class names.
        self.class_map_config = class_map or {}
        self._recorders: dict[tuple[str, ...], StepRecorders] = UncopiedDict()

    @property
    def teacher(self) -> Teacher | None:
        """The first loaded teacher, or None."""
        return next(iter(self.teachers.values()), None)

    # ------------------------------------------------------------------ the training step

    def forward(
        self, inputs: Tensor, data_samples: SampleList | None = None, mode: str = 'tensor'
    ) -> Any:
        """Run the student. With ``mode='loss'``, add the distillation losses to its losses."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        return self.student(inputs, data_samples, mode)

    def loss(self, inputs: Tensor, data_samples: SampleList) -> dict[str, Tensor]:
        """Compute the losses of one training step: the student's own and the active distillation losses.

        Args:
            inputs: Images from the student's data preprocessor, shape (N, 3, H, W).
            data_samples: The ground truth and meta information of the images.

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
            # Run teachers before the student if possible, to free their activations early.
            for teacher in record.before_student:
                teacher.run_teacher(*given)
            with record.student:
                losses = self._task_losses(inputs, data_samples, record)
            for teacher in record.after_student:
                teacher.run_teacher(*given)
            record.run_joint_parts()
            for name in active:
                if name in losses:
                    raise ConfigError(
                        f"losses.{name}: the student has its own loss '{name}'; rename the entry"
                    )
                steps = record.steps(self.entries[name], data_samples)
                losses[name] = self.entries[name](steps, factors[name])
        finally:
            record.clear()
        return self._apply_measured_weights(losses, factors) | self._idle_connectors(active)

    def _apply_measured_weights(
        self, losses: dict[str, Tensor], factors: dict[str, float]
    ) -> dict[str, Tensor]:
        """Apply the measured weights to the losses of a step, and add the weights for the log."""
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
            # mmengine sums names that contain `loss`; this one is logged only.
            losses[name.replace('loss', 'weight')] = losses[name].new_tensor(ratio.weight)
        return losses

    def _task_losses(
        self, inputs: Tensor, data_samples: SampleList, record: StepRecorders | None = None
    ) -> dict[str, Tensor]:
        """The student's own losses. With ``task_losses=False``, only run the parts that are recorded."""
        if self.task_losses:
            return self.student(inputs, data_samples, mode='loss')
        if record is None:
            raise ConfigError(
                'task_losses: False needs an active distillation loss in every iteration, got none in this '
                'one; change the schedule of a loss'
            )
        parts = record.parts_of(self.student)
        family_of(self.student).run(inputs, data_samples, parts, record.student)
        return {}

    # ------------------------------------------------------------------ before the first step

    def init_weights(self) -> None:
        """Initialise the student, load the teachers and copy inherited weights.

        mmengine calls this method when training starts, before it loads a checkpoint, and never for
        testing.
        """
        self.student.init_weights()
        for name in self.teachers.used:
            if not self.teachers.is_average(
                name
            ):  # an average starts later, from the loaded weights
                self._load_teacher(name)
        if self.inherited_modules:
            modules = self.inherited_modules
            teacher = self.teachers.load_with_weights(self._inherits_from)
            # Modules without rows per class, such as an encoder, need no class names.
            named = depends_on_classes(self.student, modules)
            classes = self._pair_classes(self._inherits_from) if named else None
            report = inherit(self.student, teacher.detector, modules, classes)
            MMLogger.get_current_instance().info(f'init_student: {report}')
        self.teachers.keep_only(self._compared)

    def prepare(self) -> None:
        """Load the teachers, pair the classes and check all loss entries. Later calls do nothing.

        Raises:
            ConfigError, PathError: The first error; the message names the loss entry.
        """
        if self._recorders or not self.entries:
            return
        self._check_hook()
        for problem in self.problems():
            raise problem

    def problems(self) -> Iterator[UserError]:
        """Load the teachers and yield all errors of the teachers, the classes and the loss entries."""
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
        """Check that a DistillationHook saves the connectors and averages of this model."""
        hub = MessageHub.get_current_instance()
        averages = any(self.teachers.is_average(name) for name in self._compared)
        has_state = bool(self.connector_state()) or averages
        if hub.get_info('loop_stage') == 'train' and not self.has_hook:
            todo = (
                "train with mmkd's tools, which add the DistillationHook, or add it to the config: "
                "default_hooks=dict(distillation=dict(type='DistillationHook'))"
            )
            if has_state:
                what = "student's average" if averages else 'connectors of the losses'
                raise ConfigError(f'default_hooks: checkpoints would lose the {what}; {todo}')
            MMLogger.get_current_instance().warning(
                f'default_hooks: without DistillationHook the data is not checked before the first '
                f'iteration; {todo}'
            )

    def _load_teacher(self, name: str) -> Teacher:
        return self.teachers.load(name, self.student, self._student_classes())

    def _student_classes(self) -> Sequence[str] | None:
        meta = MessageHub.get_current_instance().get_info('dataset_meta') or {}
        return self.classes or meta.get('classes')

    def _pair_classes(self, name: str) -> ClassMap:
        classes, teacher = self._student_classes(), self.teachers[name]
        if not classes:
            raise ConfigError(
                "classes: must be the student's class names, got none from the training data; set "
                'model.classes'
            )
        if not teacher.classes:
            raise ConfigError(
                teacher.classes_error
                or f"{self.teachers.config_key(name)}.classes: must be the teacher's class names, got none "
                f'from its checkpoint and config; set model.{self.teachers.config_key(name)}.classes'
            )
        count = family_of(self.student).num_classes()
        if count is not None and count != len(classes):
            raise ConfigError(
                f'student: num_classes must be {len(classes)}, the number of classes of the data, got '
                f'{count}; set num_classes of its heads in model.student'
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
        """Share the student's tables of modules, parameters and buffers.

        The tables of tensors are the student's own objects: code that replaces a tensor replaces it in
        both models. The table of modules is a copy, because connectors are added to it. A class derived
        from the student's class and a mixin would need no copy. But then the student itself would have
        the connectors: in its average, in its weight count, in its checkpoint loading, and with possible
        name collisions.
        """
        for table in ('_parameters', '_buffers', '_non_persistent_buffers_set'):
            self.__dict__[table] = student.__dict__[table]
        self.__dict__['_modules'] = student._modules.copy()
        # Bypass nn.Module.__setattr__, which would register the student as a submodule.
        self.__dict__['student'] = student
        # mmengine's get_state_dict runs this hook, but ignores an overridden state_dict().
        self._register_state_dict_hook(_drop_connectors)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        student = self.__dict__.get('student')
        if student is not None and name in student._modules:
            student._modules[name] = value  # FSDP replaces modules of a model by their wrappers

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if 'student' not in self.__dict__:
                raise
            return getattr(self.__dict__['student'], name)

    def train(self, mode: bool = True) -> Distiller:
        """Set the mode of the student and the connectors. Teachers always stay in evaluation mode."""
        self.training = mode
        self.student.train(mode)
        if CONNECTORS in self._modules:
            self._modules[CONNECTORS].train(mode)
        return self

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses as the student does; returns the total and the values for the log."""
        return self.student.parse_losses(losses)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # mmdet's detectors rename keys of older checkpoints in this method.
        self.student._load_from_state_dict(state_dict, prefix, *args)
        # A checkpoint has no connectors. Insert their current weights, so that none are missing.
        for key, value in self.connector_state().items():
            state_dict.setdefault(f'{prefix}{CONNECTORS}.{key}', value)

    def connector_state(self) -> dict[str, Tensor]:
        """Return the ``state_dict`` of the connectors; it is empty without connectors."""
        connectors = self._modules.get(CONNECTORS)
        return {} if connectors is None else connectors.state_dict()

    def load_connector_state(self, state: dict[str, Tensor]) -> None:
        """Restore the result of :meth:`connector_state`.

        Raises:
            ConfigError: The state belongs to other connectors.
        """
        own = self.connector_state()
        shapes = {key: tuple(value.shape) for key, value in own.items()}
        given = {key: tuple(value.shape) for key, value in state.items()}
        if shapes != given:
            differing = sorted(
                key for key in shapes.keys() | given.keys() if shapes.get(key) != given.get(key)
            )
            raise ConfigError(
                f'resume: the connectors of the checkpoint must be those of the losses, but '
                f'{", ".join(differing)} differ; resume with the losses of the checkpoint, or start from it '
                f'with load_from'
            )
        if state:
            self._modules[CONNECTORS].load_state_dict(state)

    def weight_state(self) -> dict[str, dict[str, float]]:
        """Return the measurements for the weights of losses, by name; empty if no weight is measured."""
        return {name: it.ratio.state() for name, it in self.entries.items() if it.ratio}

    def load_weight_state(self, state: dict[str, dict[str, float]]) -> None:
        """Restore the result of :meth:`weight_state`. Losses that are not in it start a new measurement."""
        for name, entry in self.entries.items():
            if entry.ratio and name in state:
                entry.ratio.load_state(state[name])

    def _idle_connectors(self, active: tuple[str, ...]) -> dict[str, Tensor]:
        """Losses of 0 that reach the connectors of inactive entries, because DDP waits for all gradients."""
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
    """The paths of the inherited modules, and the name of the teacher."""
    config = dict(init_student or {})
    modules = config.pop('from_teacher', [])
    teacher = config.pop('teacher_name', TEACHER)
    if config:
        wrong = next(iter(config))
        known = ['from_teacher', 'teacher_name']
        raise ConfigError(
            f'init_student.{wrong}: init_student has no such option{did_you_mean(wrong, known)}'
        )
    if isinstance(modules, str):
        raise ConfigError(
            f'init_student.from_teacher: must be a list of module paths, got {modules!r}'
        )
    return list(modules or []), teacher


def _drop_connectors(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    if prefix.endswith(FSDP_PREFIX):
        return  # FSDP expects all keys that it gathered; the DistillationHook removes them later
    for key in [key for key in state if key.startswith(f'{prefix}{CONNECTORS}.')]:
        del state[key]
