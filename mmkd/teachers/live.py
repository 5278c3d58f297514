"""A frozen detector as teacher."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmdet.structures import SampleList
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from ..alignments import shared_labels
from ..alignments.padding import size_divisor
from ..building import build_detector
from ..checkpoints import load_weights, read_checkpoint
from ..errors import ConfigError
from ..families import family_of
from ..nested import to_float32
from ..recorder import Recorder, Source
from ..sharding.teacher import TeacherSharding
from ..types import Detector
from .base import Teacher
from .config import config_classes, load_config
from .normalization import Renormalization
from .padding import Size, crop_maps, pad
from .precision import TeacherPrecision
from .resolution import check_scale, resize


class LiveTeacher(Teacher):
    """A detector from an MMDetection config and checkpoint, always frozen and in evaluation mode.

    Args:
        config: The teacher's MMDetection config: a path, ``mmdet::…`` for a config that ships with mmdet,
            or a dict with the key ``model``.
        checkpoint: The weights: a path or a http(s) URL.
        classes: The class names, if neither checkpoint nor config has them.
        name: The config key of the teacher in messages, ``teacher`` or ``teachers.<name>``.
        scale: Width and height of the teacher's images relative to the student's.
        amp: The precision of the forward pass (:class:`TeacherPrecision`).
        shard: Whether to shard the weights over the processes of a training run
            (:class:`TeacherSharding`).
        **options: Options of the detector's family, e.g. ``proposals`` (:mod:`mmkd.families`).

    Raises:
        MissingFileError: Config or checkpoint does not exist.
        CheckpointError: The checkpoint would run code when read, or does not match the config.
        ConfigError: The config is not a detector config, or names a type that is not registered.

    Examples:
        >>> import torch
        >>> from mmengine.hub import get_model
        >>> from mmkd.teachers import LiveTeacher
        >>> config = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
        >>> torch.save(get_model(config).state_dict(), 'rtmdet_tiny.pth')  # in place of trained weights
        >>> teacher = LiveTeacher(config, checkpoint='rtmdet_tiny.pth')
        >>> teacher.classes[:3], any(p.requires_grad for p in teacher.detector.parameters())
        (('person', 'bicycle', 'car'), False)
    """

    def __init__(
        self,
        config: str | dict,
        checkpoint: str,
        classes: Sequence[str] | None = None,
        name: str = 'teacher',
        scale: float = 1.0,
        amp: str | bool | None = None,
        shard: bool = False,
        **options: Any,
    ) -> None:
        self.name = name
        cfg = load_config(config, name)
        self.scale = check_scale(scale, name)
        self.precision = TeacherPrecision(name, amp)
        self.sharding = TeacherSharding(name, shard)
        self.checkpoint = checkpoint
        where = f"{name}.checkpoint='{checkpoint}'"
        weights = read_checkpoint(checkpoint, where, hint=_how_to_get(config))
        #: The registry scope of the teacher's modules: mmdet, another library or the user's own.
        self.scope = cfg.get('default_scope') or 'mmdet'
        detector = build_detector(cfg.model, f'{name}.config', self.scope)
        load_weights(detector, weights, where)
        #: The key ``model`` of its config.
        self.model_config = cfg.model
        self._freeze(detector, options)
        named = _named_classes(classes, weights.get('meta', {}), cfg)
        self.classes = self._class_names(named, f'{name}.classes', given=bool(classes))

    def _freeze(self, detector: Detector, options: dict[str, Any]) -> None:
        self.detector: Detector = detector.eval().requires_grad_(False)
        self.family = family_of(self.detector, **options)
        self.precision.apply_to(self.detector)
        self._renormalization: Renormalization | None = None
        self._size_divisor = size_divisor(self.detector.data_preprocessor)
        # If the teacher pads the batch further: number of images, and size with and without this padding.
        self._own_padding: tuple[int, Size, Size] | None = None

    def _class_names(
        self, names: Sequence[str] | str | None, key: str, given: bool
    ) -> tuple[str, ...] | None:
        if not names:
            return None
        names = (names,) if isinstance(names, str) else tuple(names)
        count = self.family.num_classes()
        if count is None or len(names) == count:
            return names
        problem = (
            f'{key}: must be {count} names, the number of classes of the teacher, got {len(names)} '
            f'{"" if given else "from its checkpoint or config "}({", ".join(names[:5])}, …); set {key} to '
            f'the names in order'
        )
        if given:
            raise ConfigError(problem)
        self.classes_error = problem  # an error only if a loss reads classes
        return None

    @property
    def origin(self) -> str:
        """The checkpoint of the weights, for the log."""
        return self.checkpoint

    def recorder(self, sources: Sequence[Source]) -> Recorder:
        """Return a recorder of the teacher's modules; see :meth:`Teacher.recorder`."""
        return Recorder(self.detector, sources, owner='teacher', convert=self._for_student)

    def _for_student(self, source: Source, value: Any) -> Any:
        if self._own_padding is not None and not self.family.part_of(source).startswith('roi'):
            value = crop_maps(value, *self._own_padding)
        return to_float32(value)

    @torch.no_grad()
    def run(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        preprocessor: BaseDataPreprocessor,
        parts: set[str],
        student: Recorder,
    ) -> dict[str, Any]:
        """Convert the batch to the teacher's input and run ``parts``; see :meth:`Teacher.run`."""
        if next(self.detector.parameters()).device != inputs.device or self.sharding.is_pending:
            self.sharding.move_to_device(self.detector, inputs.device)
        if self._renormalization is None or self._renormalization.source is not preprocessor:
            own = self.detector.data_preprocessor
            self._renormalization = Renormalization(preprocessor, own)
        if self._renormalization.is_needed:
            inputs = self._renormalization(inputs, data_samples)
        scale = (1.0, 1.0)
        if self.scale != 1:
            inputs, data_samples, scale = resize(inputs, data_samples, self.scale)
        self._own_padding = None
        if any(length % self._size_divisor for length in inputs.shape[-2:]):
            size = _size(inputs)
            inputs, data_samples = pad(inputs, data_samples, self.detector.data_preprocessor)
            self._own_padding = (len(inputs), _size(inputs), size)
        with self._precision(inputs.device):
            shared = self.family.run(inputs, data_samples, parts, student, scale)
        return dict(to_float32(shared), scale=scale)

    @torch.no_grad()
    def predict(self, batch: dict[str, Any], device: torch.device | None = None) -> SampleList:
        """Return the teacher's detections, in float32 and at the resolution that it has in training.

        Args:
            batch: Images and samples from the student's test pipeline, before any preprocessor.
            device: The device to run on. Default: the current device of the detector.
        """
        if device is not None and next(self.detector.parameters()).device != device:
            self.detector.to(device)
        inputs, samples = list(batch['inputs']), list(batch['data_samples'])
        if self.scale != 1:
            resized = [
                resize(image.float()[None], [sample], self.scale)
                for image, sample in zip(inputs, samples, strict=True)
            ]
            inputs, samples = [each[0][0] for each in resized], [each[1][0] for each in resized]
        return self.detector.test_step(dict(inputs=inputs, data_samples=samples))

    def shared_labels(
        self, classes: Sequence[str], class_map: dict[str, Any] | None = None
    ) -> dict[int, int]:
        """Map the teacher's labels to the student's labels, for the classes that both have.

        Args:
            classes: Class names of the student.
            class_map: ``class_map`` of the distillation config.

        Raises:
            ConfigError: The class names of the teacher are unknown.
        """
        if self.classes is None:
            raise ConfigError(
                self.classes_error
                or f"{self.name}.classes: must be the teacher's class names, got none from its checkpoint "
                f'and config; set them in order'
            )
        return shared_labels(classes, self.classes, (class_map or {}).get('synonyms'))

    def _precision(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext() if self.precision.amp is None else self.precision.autocast(device)

    @torch.no_grad()
    def run_joint_parts(self, recorded: Recorder, shared: dict[str, Any], parts: set[str]) -> None:
        """Run the teacher's joint parts; see :meth:`mmkd.families.Family.run_joint_parts`."""
        device = next(self.detector.parameters()).device
        with self._precision(device):
            self.family.run_joint_parts(self.detector, recorded, shared, parts)


def _size(inputs: Tensor) -> Size:
    return (inputs.shape[-2], inputs.shape[-1])


def _named_classes(
    given: Sequence[str] | None, meta: dict[str, Any], config: Config
) -> Sequence[str] | str | None:
    dataset_meta = meta.get('dataset_meta') or {}
    return (
        given
        or dataset_meta.get('classes')
        or dataset_meta.get('CLASSES')  # mmengine before 0.3
        or meta.get('CLASSES')  # mmdet 2.x, as in most published checkpoints
        or config_classes(config)
    )


def _how_to_get(config: str | dict) -> str:
    if isinstance(config, str) and '::' not in config:
        return f'train it with `mim train mmkd {os.path.relpath(config)}` or set teacher.checkpoint'
    return 'set teacher.checkpoint to a file or URL of its weights'
