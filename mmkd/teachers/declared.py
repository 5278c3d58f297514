"""The teachers that a config declares, by name."""

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

# The name of the teacher in `model.teacher`.
TEACHER = 'teacher'
EMA = 'ema'
CACHE = 'cache'
# Options of a teacher that is read from a cache.
CACHE_OPTIONS = (CACHE, 'min_visible', 'photometric')


class DeclaredTeachers(Mapping[str, Teacher]):
    """The teachers that a config declares: their configs, and the teachers that are loaded.

    As a mapping, it contains the loaded teachers. Like a teacher, it is not an ``nn.Module``, and copies of
    its owner share it.

    Args:
        teacher: The arguments of :class:`LiveTeacher`; or ``ema`` and the other arguments of
            :class:`AveragedTeacher`; or ``cache`` and the other arguments of
            :class:`mmkd.teachers.CachedTeacher`.
        teachers: More teachers of the same form, by name.
        readers: The teachers that are used: their names, with the config key that names each.

    Raises:
        ConfigError: A used teacher is not declared.

    Examples:
        >>> from mmkd.teachers import DeclaredTeachers
        >>> teachers = DeclaredTeachers(
        ...     teacher=dict(ema=dict(type='ExpMomentumEMA', momentum=0.0002)),
        ...     teachers=dict(second=dict(cache='work_dirs/cache/retinanet')),
        ...     readers={'teacher': 'losses.loss_kd_cls', 'second': 'losses.loss_kd_neck'},
        ... )
        >>> teachers.used, len(teachers)  # none is loaded before training starts
        (['teacher', 'second'], 0)
        >>> teachers.is_average('teacher'), teachers.is_cached('second')
        (True, True)
    """

    def __init__(
        self,
        teacher: dict[str, Any] | None,
        teachers: dict[str, dict[str, Any]] | None,
        readers: Mapping[str, str],
    ) -> None:
        self.configs = {name: config for name, config in (teachers or {}).items() if config}
        if TEACHER in self.configs:
            raise ConfigError(
                f"teachers.{TEACHER}: the name '{TEACHER}' belongs to model.teacher; use another name"
            )
        if teacher:
            self.configs = {TEACHER: teacher, **self.configs}
        for name, config in self.configs.items():
            self.configs[name] = _without_removed(config, self.config_key(name))
        for name, key in readers.items():
            if not self.configs:
                what = 'losses need' if key.startswith('losses.') else f'{key} needs'
                raise ConfigError(f'teacher: not given, but {what} one; set model.teacher')
            if name not in self.configs:
                raise ConfigError(
                    f'{key}.teacher_name: must be one of the declared teachers {", ".join(self.configs)}, '
                    f'got {name!r}'
                )
        #: Names of the teachers that are used, in the order of the config.
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
        """Return the config key of a teacher, below ``model``."""
        return name if name == TEACHER else f'teachers.{name}'

    def is_average(self, name: str) -> bool:
        """Return whether a teacher is the moving average of the student."""
        return EMA in self.configs[name]

    def is_cached(self, name: str) -> bool:
        """Return whether a teacher's outputs are read from a cache."""
        return bool(self.configs[name].get(CACHE))

    def load(self, name: str, student: Detector, classes: Sequence[str] | None) -> Teacher:
        """Return a teacher, and load it first if needed.

        Args:
            name: The name of the teacher.
            student: The student, which an averaged teacher starts from.
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
        """Return a teacher with weights. For a cached teacher, build the detector that wrote the cache.

        The detector built for a cached teacher is not stored.

        Raises:
            ConfigError: The config of a cached teacher names no config or checkpoint.
        """
        if not self.is_cached(name):
            return self[name]
        config = self._without_cache(name)
        absent = [key for key in ('config', 'checkpoint') if key not in config]
        if absent:
            raise ConfigError(
                f'init_student: needs weights, which a cache does not store; set '
                f'{self.config_key(name)}.{" and .".join(absent)} in addition to cache'
            )
        return self._build(name, LiveTeacher, **config)

    def _without_cache(self, name: str) -> dict[str, Any]:
        """The config of a teacher without the options of its cache."""
        config = self.configs[name]
        # `cache=None`, from a command line, drops the cache and its options. Without the key `cache`, the
        # options stay and are refused later.
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
        """Release all loaded teachers except these."""
        self._loaded = {name: each for name, each in self._loaded.items() if name in names}

    def update_averages(self, student: Detector) -> None:
        """Update all averaged teachers with the student's weights, after each iteration."""
        for teacher in self._loaded.values():
            if isinstance(teacher, AveragedTeacher):
                teacher.update(student)

    def average_state(self) -> dict[str, dict[str, Tensor]]:
        """Return the ``state_dict`` of each averaged teacher, by name."""
        return {
            name: teacher.average.state_dict()
            for name, teacher in self._loaded.items()
            if isinstance(teacher, AveragedTeacher)
        }

    def load_average_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore the result of :meth:`average_state`, now or when the teachers are loaded.

        Raises:
            ConfigError: The state does not match the averaged teachers that the config declares.
        """
        wanted = [name for name in self.used if self.is_average(name)]
        if sorted(wanted) != sorted(state):
            raise ConfigError(
                f'resume: the checkpoint has the averaged teachers {sorted(state)}, but the config declares '
                f'{sorted(wanted)}; resume with the teachers of the checkpoint, or start from it with '
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
    """A teacher's config without the options of earlier releases that changed no output."""
    kept = {name: value for name, value in config.items() if name not in REMOVED_OPTIONS}
    for name in config.keys() - kept.keys():
        MMLogger.get_current_instance().warning(
            f'{key}.{name}: ignored; this option saved no time and was removed; delete it'
        )
    return kept
