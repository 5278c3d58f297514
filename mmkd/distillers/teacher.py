"""The frozen detector a student learns from."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import SampleList
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ..alignments import ClassMap
from ..checkpoints import load_weights, read_checkpoint
from ..errors import ConfigError, MissingFileError
from ..families import family_of
from ..nested import to_float32
from ..random_state import preserve_rng_state
from ..recorder import Enough, Recorder, Source
from .normalization import renormalize
from .resolution import check_scale, resize
from .teacher_sharding import TeacherSharding
from .teacher_speed import TeacherSpeed, convert_weights


class Teacher:
    """A detector from an MMDetection config and checkpoint, frozen and in evaluation mode for good.

    It is no ``nn.Module`` on purpose: nothing that walks a model's modules (optimizer, ``state_dict``,
    ``train()``, EMA, DDP) can meet it, and a deep copy of its owner shares it.

    Args:
        config: The teacher's MMDetection config: a path, ``mmdet::…`` for one that ships with mmdet,
            or a dict that holds ``model``.
        checkpoint: Its weights: a path or a http(s) URL.
        classes: Its class names, when neither checkpoint nor config tells them.
        name: How messages call its config, ``teacher`` or ``teachers.<name>``.
        scale: How much larger than the student's the images are that it sees.
        amp, channels_last, compile: What makes its pass cheaper (:class:`TeacherSpeed`).
        shard: Whether the processes of a training share its weights out (:class:`TeacherSharding`).
        options: What the detector's family offers, e.g. ``proposals`` (:mod:`mmkd.families`).

    Raises:
        MissingFileError: Config or checkpoint does not exist.
        CheckpointError: The checkpoint would run code when read, or does not fit the config.
        ConfigError: The config is no detector config.
    """

    def __init__(
        self,
        config: str | dict,
        checkpoint: str,
        classes: Sequence[str] | None = None,
        name: str = 'teacher',
        scale: float = 1.0,
        amp: str | bool | None = None,
        channels_last: bool = False,
        compile: bool | dict[str, Any] = False,
        shard: bool = False,
        **options: Any,
    ) -> None:
        cfg = load_config(config, name)
        self.scale = check_scale(scale, name)
        self.speed = TeacherSpeed(name, amp, channels_last, compile)
        self.sharding = TeacherSharding(name, shard, self.speed)
        self.checkpoint = checkpoint
        where = f"{name}.checkpoint='{checkpoint}'"
        weights = read_checkpoint(checkpoint, where, hint=_how_to_get(config))
        with preserve_rng_state(), DefaultScope.overwrite_default_scope('mmdet'):
            detector = MODELS.build(copy.deepcopy(cfg.model))
        load_weights(detector, weights, where)
        self._freeze(detector, options)
        named = _named_classes(classes, weights.get('meta', {}), cfg)
        self.classes = self._class_names(named, f'{name}.classes', given=bool(classes))

    def _freeze(self, detector: nn.Module, options: dict[str, Any]) -> None:
        self.detector: nn.Module = detector.eval().requires_grad_(False)
        self.family = family_of(self.detector, **options)
        self.speed.apply_to(self.detector)

    @property
    def options(self) -> dict[str, Any]:
        """What alignments may ask for, by name: the family's choices, and ``scale``."""
        return dict(self.family.options, scale=self.scale)

    @property
    def may_end_early(self) -> bool:
        """Whether one process may leave a pass where another goes on."""
        return not self.sharding.shard

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self

    def _class_names(
        self, names: Sequence[str] | str | None, key: str, given: bool
    ) -> tuple[str, ...] | None:
        if not names:
            return None
        names = (names,) if isinstance(names, str) else tuple(names)
        count = self.family.num_classes()
        if count is not None and len(names) != count:
            raise ConfigError(
                f'the teacher was built for {count} classes, but its '
                f'{f"config key {key}" if given else "checkpoint or config"} names '
                f'{len(names)} ({", ".join(names[:5])}, …); set {key} to the names in order'
            )
        return names

    @property
    def origin(self) -> str:
        """Where its weights are from, for the log."""
        return self.checkpoint

    def num_parameters(self) -> int:
        """Number of weights of the whole detector."""
        return sum(parameter.numel() for parameter in self.detector.parameters())

    def require(self, entries: Iterable[Any], name: str, class_map: ClassMap | None) -> None:
        """Make sure that it can answer what losses read; a detector always can.

        Args:
            entries: The losses that compare with it.
            name: Its name.
            class_map: Which class is which, where one of them reads classes.
        """

    def prepare_data(self, dataset: Any, preprocessor: BaseDataPreprocessor | None = None) -> None:
        """Make sure that it can answer for the images of a training; a detector always can.

        Args:
            dataset: The training data, as it is used.
            preprocessor: The student's.
        """

    def recorder(self, sources: list[Source]) -> Recorder:
        """A recorder for the teacher's modules, which gives float32 whatever the pass runs in."""
        recorder = Recorder(self.detector, sources, owner='teacher', float32=True)
        self.speed.respect(recorder)
        return recorder

    @torch.no_grad()
    def __call__(
        self,
        inputs: Tensor,
        data_samples: SampleList,
        preprocessor: BaseDataPreprocessor,
        parts: set[str],
        student: Recorder,
    ) -> dict[str, Any]:
        """Run the parts that are read; see :meth:`mmkd.families.Family.run`.

        Args:
            inputs: Images as the student sees them, shape (N, 3, H, W).
            data_samples: Their meta information.
            preprocessor: The student's, which normalised ``inputs``.
            parts: Parts to run.
            student: What the student recorded.

        Returns:
            What the family shares, and ``scale``: how much larger the images were than the student's, in
            width and in height.
        """
        self.sharding.settle(self.detector, inputs.device)
        own = self.detector.data_preprocessor
        inputs = renormalize(inputs, data_samples, preprocessor, own)
        scale = (1.0, 1.0)
        if self.scale != 1:
            inputs, data_samples, scale = resize(inputs, data_samples, self.scale)
        shared: dict[str, Any] = {}
        # A pass ends early only where it would have shared nothing.
        with self.speed.running(self.detector, inputs.device), suppress(Enough):
            inputs = self.speed.images(inputs)
            shared = self.family.run(inputs, data_samples, parts, student, scale)
        return dict(to_float32(shared), scale=scale)

    @torch.no_grad()
    def follow(self, recorded: Recorder, shared: dict[str, Any], parts: set[str]) -> None:
        """Compute the parts of the joint pass; see :meth:`mmkd.families.Family.follow`."""
        device = next(self.detector.parameters()).device
        with self.speed.running(self.detector, device):
            self.family.follow(self.detector, recorded, shared, parts)


class AveragedTeacher(Teacher):
    """The exponential moving average of the student itself ("mean teacher").

    Tarvainen, Valpola: Mean Teachers are Better Role Models, NeurIPS 2017 (arXiv 1703.01780): the
    average is more accurate than the student of the moment. It is updated after each step of the
    optimizer, and saved and resumed with the training (:class:`mmkd.hooks.DistillationHook`).

    Args:
        student: The student.
        ema: Config of an averaged model of mmengine or mmdet, as an ``EMAHook`` has it: ``type``,
            ``momentum``, ``update_buffers`` …
        classes: The student's class names.
        name, scale, amp, channels_last, compile, options: As :class:`Teacher`.
    """

    def __init__(
        self,
        student: nn.Module,
        ema: dict[str, Any],
        classes: Sequence[str] | None = None,
        name: str = 'teacher',
        scale: float = 1.0,
        amp: str | bool | None = None,
        channels_last: bool = False,
        compile: bool | dict[str, Any] = False,
        **options: Any,
    ) -> None:
        self.scale = check_scale(scale, name)
        self.speed = TeacherSpeed(name, amp, channels_last, compile)
        if 'shard' in options:
            raise ConfigError(
                f'{name}.shard is for a teacher from a checkpoint: each process averages its own student; '
                f'leave it out'
            )
        self.sharding = TeacherSharding(name, False, self.speed)
        if ((self.speed.compile_options or {}).get('options') or {}).get('freezing'):
            raise ConfigError(
                f'{name}.compile.options.freezing: the weights of an average do not stay as they are'
            )
        if channels_last:
            # Before it is averaged: the average holds on to the memory of the weights it starts with.
            student = convert_weights(copy.deepcopy(student))
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

    def update(self, student: nn.Module) -> None:
        """Take the student's present weights into the average."""
        self.average.update_parameters(student)
        self.detector.eval()


def load_config(config: str | dict, name: str = 'teacher') -> Config:
    """The teacher's config from a path, ``mmdet::…`` or a dict; ``name`` is its own in messages."""
    if isinstance(config, str):
        if '::' in config:
            try:
                cfg = get_config(config)
            except (FileNotFoundError, ValueError, KeyError) as error:
                raise MissingFileError(f"{name}.config='{config}' is not there: {error}") from None
        elif not Path(config).is_file():
            raise MissingFileError(
                f"{name}.config='{config}' does not exist (relative to {os.getcwd()})"
            )
        else:
            cfg = Config.fromfile(config)
    else:
        cfg = Config(dict(config))
    if 'model' not in cfg:
        raise ConfigError(f'{name}.config={str(config)[:80]!r} holds no `model`')
    if cfg.model.get('type') == 'Distiller':
        raise ConfigError(
            f'{name}.config={str(config)[:80]!r} is a distillation config; name the plain config of '
            f'its student, which its checkpoints belong to'
        )
    return cfg


def _named_classes(
    given: Sequence[str] | None, meta: dict[str, Any], config: Config
) -> Sequence[str] | str | None:
    dataset_meta = meta.get('dataset_meta') or {}
    return (
        given
        or dataset_meta.get('classes')
        or dataset_meta.get('CLASSES')  # mmengine before 0.3
        or meta.get('CLASSES')  # mmdet 2.x, which most published checkpoints come from
        or config_classes(config)
    )


def _how_to_get(config: str | dict) -> str:
    if isinstance(config, str) and '::' not in config:
        return f'train it with `mim train mmkd {os.path.relpath(config)}` or set teacher.checkpoint'
    return 'set teacher.checkpoint to a file or URL of its weights'


def config_classes(config: Config) -> Sequence[str] | None:
    """Class names a config gives its test or training data, explicitly or by the dataset's type."""
    for loader in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        dataset = (config.get(loader) or {}).get('dataset')
        while dataset and 'type' in dataset:
            given = dataset.get('metainfo') or {}
            kind = DATASETS.get(dataset['type']) if isinstance(dataset['type'], str) else None
            names = given.get('classes') or (getattr(kind, 'METAINFO', None) or {}).get('classes')
            if names:
                return names
            inner = dataset.get('dataset') or dataset.get('datasets')
            dataset = inner[0] if isinstance(inner, (list, tuple)) else inner
    return None
