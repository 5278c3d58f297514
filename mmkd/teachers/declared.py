"""The teachers of a distillation, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmengine.logging import MMLogger
from torch import Tensor

from ..errors import ConfigError
from ..types import Detector
from .averaged import AveragedTeacher
from .base import Teacher
from .cached import REMOVED_OPTIONS, CachedTeacher
from .live import LiveTeacher

# The name of the teacher that `model.teacher` declares.
TEACHER = 'teacher'
EMA = 'ema'
CACHE = 'cache'
# How a cache is read.
CACHE_OPTIONS = (CACHE, 'min_visible', 'photometric')


class DeclaredTeachers(Mapping[str, Teacher]):
    """Those that a config declares; of each the config, and once it is loaded the teacher itself.

    A mapping of the loaded ones. Like a teacher it is no ``nn.Module`` and shared by copies of its owner.

    Args:
        teacher: The arguments of :class:`LiveTeacher`; or ``ema`` and others of :class:`AveragedTeacher`; or
            ``cache`` and others of :class:`mmkd.teachers.CachedTeacher`.
        teachers: More of them by name.
        readers: Who reads which: the teachers' names, with the config key that names each.

    Raises:
        ConfigError: A teacher is named that is not declared.
    """

    def __init__(
        self,
        teacher: dict[str, Any] | None,
        teachers: dict[str, dict[str, Any]] | None,
        readers: Mapping[str, str],
    ) -> None:
        self.configs = {name: config for name, config in (teachers or {}).items() if config}
        if TEACHER in self.configs:
            raise ConfigError(f"teachers: '{TEACHER}' is how that of model.teacher is called")
        if teacher:
            self.configs = {TEACHER: teacher, **self.configs}
        for name, config in self.configs.items():
            self.configs[name] = _without_removed(config, self.config_key(name))
        for name, key in readers.items():
            if not self.configs:
                what = 'losses are' if key.startswith('losses.') else f'{key} is'
                raise ConfigError(f'{what} declared, but no teacher')
            if name not in self.configs:
                raise ConfigError(
                    f"{key}.teacher_name='{name}': no such teacher is declared, but "
                    f'{", ".join(self.configs)}'
                )
        #: Names of those that are read, in the order of the config.
        self.used = [name for name in self.configs if name in readers]
        self._loaded: dict[str, Teacher] = {}
        self._averages: dict[str, dict[str, Tensor]] = {}

    def __getitem__(self, name: str) -> Teacher:
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)

    def __deepcopy__(self, memo: dict) -> DeclaredTeachers:
        return self

    def config_key(self, name: str) -> str:
        """The config key of a teacher, below ``model``."""
        return name if name == TEACHER else f'teachers.{name}'

    def is_average(self, name: str) -> bool:
        """Whether a teacher is the average of the student."""
        return EMA in self.configs[name]

    def is_cached(self, name: str) -> bool:
        """Whether a teacher's outputs are read from a cache."""
        return bool(self.configs[name].get(CACHE))

    def load(self, name: str, student: Detector, classes: Sequence[str] | None) -> Teacher:
        """Load a teacher if it is not there yet.

        Args:
            name: Its name.
            student: The student, as it is now.
            classes: The student's class names.
        """
        if name not in self._loaded:
            config = dict(self.configs[name])
            if self.is_average(name):
                config.setdefault('classes', classes)
                self._loaded[name] = self._build(name, AveragedTeacher, student=student, **config)
            else:
                cached = self.is_cached(name)
                config = config if cached else self._without_cache(name)
                self._loaded[name] = self._build(
                    name, CachedTeacher if cached else LiveTeacher, **config
                )
            self._restore(name)
        return self._loaded[name]

    def load_with_weights(self, name: str) -> Teacher:
        """A loaded teacher; where it is cached, the one that wrote the cache, which is not kept.

        Raises:
            ConfigError: A cached one's config does not say where its weights are.
        """
        if not self.is_cached(name):
            return self[name]
        config = self._without_cache(name)
        absent = [key for key in ('config', 'checkpoint') if key not in config]
        if absent:
            raise ConfigError(
                f'init_student takes weights, which a cache does not hold; set {self.config_key(name)}.'
                f'{" and .".join(absent)} beside cache'
            )
        return self._build(name, LiveTeacher, **config)

    def _without_cache(self, name: str) -> dict[str, Any]:
        """The config of a teacher without what concerns its cache."""
        config = self.configs[name]
        # Without a cache its options are left to be refused; `cache=None` is how a command line drops one.
        dropped = CACHE_OPTIONS if CACHE in config else ()
        return {key: value for key, value in config.items() if key not in dropped}

    def _build(self, name: str, kind: Callable[..., Teacher], **config: Any) -> Teacher:
        try:
            return kind(name=self.config_key(name), **config)
        except TypeError as error:
            if '__init__() ' not in str(error):
                raise
            raise ConfigError(f'{self.config_key(name)}: {error}') from None

    def keep_only(self, names: Sequence[str]) -> None:
        """Let go of all loaded teachers but these."""
        self._loaded = {name: each for name, each in self._loaded.items() if name in names}

    def update_averages(self, student: Detector) -> None:
        """After an iteration: those that are the student's average move on."""
        for teacher in self._loaded.values():
            if isinstance(teacher, AveragedTeacher):
                teacher.update(student)

    def average_state(self) -> dict[str, dict[str, Tensor]]:
        """The ``state_dict`` of each that is the student's average, by name."""
        return {
            name: teacher.average.state_dict()
            for name, teacher in self._loaded.items()
            if isinstance(teacher, AveragedTeacher)
        }

    def load_average_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore what :meth:`average_state` gave, now or as soon as they are there.

        Raises:
            ConfigError: It does not hold the averages that the config declares.
        """
        wanted = [name for name in self.used if self.is_average(name)]
        if sorted(wanted) != sorted(state):
            raise ConfigError(
                f'the checkpoint holds the averages {sorted(state)}, but the teachers declare '
                f'{sorted(wanted)}; resume with the teachers it was written with, or start from it with '
                f'load_from'
            )
        self._averages = dict(state)
        for name in wanted:
            self._restore(name)

    def _restore(self, name: str) -> None:
        teacher = self._loaded.get(name)
        if isinstance(teacher, AveragedTeacher) and name in self._averages:
            teacher.average.load_state_dict(self._averages.pop(name))


def _without_removed(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A teacher's config without options of earlier releases, which changed no output."""
    kept = {name: value for name, value in config.items() if name not in REMOVED_OPTIONS}
    for name in config.keys() - kept.keys():
        MMLogger.get_current_instance().warning(
            f'{key}.{name}: ignored, this option saved no time and was removed; delete it'
        )
    return kept
