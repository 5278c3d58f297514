"""A run as its config describes it: the input of the checks."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from mmdet.datasets import BaseDetDataset
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_distributed
from mmengine.registry import init_default_scope

from ..building import build_detector
from ..errors import UserError
from ..random_state import preserve_rng_state
from ..types import Detector
from .annotations import AnnotatedData, iter_data, rebuild_wrappers, unwrapped_datasets
from .files import missing_files

# Maximum number of XML files and images that are read before a run starts; `check` reads all.
SAMPLE = 1000


class PlannedRun:
    """A config with the data sets and the detector that are built from it, without trained weights.

    Args:
        cfg: A loaded config; it is not changed.
        modes: Which of ``'train'``, ``'val'`` and ``'test'`` will run.
        path: Path of the config, for messages.
        whole: Read all annotation files and images. By default, large annotation files are skipped and
            only a sample of the images and XML files is read.
        built: Data sets that the run has already built, by mode; large ones are not read again.

    Examples:
        >>> from mmengine.config import Config
        >>> from mmkd.preflight import PlannedRun
        >>> model = dict(type='Distiller', student=dict(type='RetinaNet'))
        >>> run = PlannedRun(Config(dict(model=model, train_cfg=dict(max_epochs=12))), modes=('train',))
        >>> run.distils, run.detector_key, run.epochs
        (True, 'model.student', 12)
    """

    def __init__(
        self,
        cfg: Config,
        modes: Sequence[str],
        path: str = '',
        whole: bool = False,
        built: dict[str, Any] | None = None,
    ) -> None:
        self.cfg = cfg
        self.modes = [mode for mode in modes if cfg.get(f'{mode}_cfg') is not None]
        #: Whether the run trains.
        self.trains = 'train' in modes
        self.path = path
        self.whole = whole
        self.built = built or {}
        self._unreadable: list[UserError] = []
        self._wrapped: dict[str, Any] = {}
        init_default_scope(cfg.get('default_scope') or 'mmdet')

    @property
    def model_config(self) -> dict[str, Any]:
        """The ``model`` section of the config; empty if there is none."""
        return self.cfg.get('model') or {}

    @property
    def distils(self) -> bool:
        """Whether the model is a ``Distiller``."""
        return str(self.model_config.get('type')).rpartition('.')[2] == 'Distiller'

    @property
    def needs_labels(self) -> bool:
        """Whether the training images need labels; not with ``task_losses=False``."""
        return not (self.distils and self.model_config.get('task_losses') is False)

    @property
    def detector_key(self) -> str:
        """The config key of the detector that is trained."""
        return 'model.student' if self.distils else 'model'

    @property
    def detector_config(self) -> dict[str, Any]:
        """The model config of the detector that is trained: the student of a ``Distiller``."""
        return (self.model_config.get('student') or {}) if self.distils else self.model_config

    @cached_property
    def planned_data(self) -> list[AnnotatedData]:
        """All data sets of the config, before their annotations are read."""
        found: list[AnnotatedData] = []
        for mode in self.modes:
            try:
                planned = list(iter_data(self.cfg, mode))
            except UserError as error:
                self._unreadable.append(error)
                continue
            built = unwrapped_datasets(self.built[mode]) if mode in self.built else []
            for index, data in enumerate(planned):
                data.sample = None if self.whole else SAMPLE
                data.built = built[index] if len(built) == len(planned) else None
                found.append(data)
        return found

    @cached_property
    def data(self) -> list[AnnotatedData]:
        """The data sets that were read; :attr:`unreadable` has the errors of the others."""
        found: list[AnnotatedData] = []
        for data in self.planned_data:
            if any(True for _ in missing_files(self.cfg, data.config, data.key)):
                continue  # check_data_files reports them
            try:
                if data.is_local and (self.whole or not data.is_large()):
                    data.load()
                elif data.built is not None:
                    data.use_built()
                else:
                    continue
                found.append(data)
            except UserError as error:
                self._unreadable.append(error)
        return found

    def dataset(self, mode: str) -> Any:
        """The data set of a data loader with its wrappers; None if a part of it was not read.

        Raises:
            ConfigError: A wrapper cannot be built.
        """
        if mode in self.built:
            return self.built[mode]
        if mode in self._wrapped:
            return self._wrapped[mode]
        planned = [data for data in self.planned_data if data.mode == mode]
        read = [data for data in self.data if data.mode == mode and data.is_local]
        # Not for videos, as their samplers select the frames.
        if not read or len(read) < len(planned) or not all(map(_is_of_images, read)):
            return None
        key = f'{mode}_dataloader'
        with preserve_rng_state():
            inner = iter([data.loaded_dataset() for data in read])
            self._wrapped[mode] = rebuild_wrappers(self.cfg[key].dataset, inner, f'{key}.dataset')
        return self._wrapped[mode]

    @property
    def epochs(self) -> int | None:
        """Number of training epochs; None in a run that counts iterations."""
        return (self.cfg.get('train_cfg') or {}).get('max_epochs')

    @cached_property
    def iterations(self) -> int | None:
        """Approximate number of training iterations; None if unknown."""
        loop = self.cfg.get('train_cfg') or {}
        if self.epochs is None:
            return loop.get('max_iters')
        loader = self.cfg.get('train_dataloader') or {}
        try:
            dataset = self.dataset('train')
        except UserError:  # another check reports it
            return None
        if dataset is None:
            return None
        batch = loader.get('batch_size', 1) * int(os.environ.get('WORLD_SIZE', 1))
        count = loader.get('num_batch_per_epoch') or math.ceil(len(dataset) / batch)
        return self.epochs * count

    @property
    def unreadable(self) -> list[UserError]:
        """The errors of the data sets that could not be read."""
        return self._unreadable if self.data is not None else []

    @cached_property
    def detector(self) -> Detector:
        """The detector that is trained, with uninitialised weights.

        Raises:
            ConfigError: The detector cannot be built.
        """
        scope = self.cfg.get('default_scope') or 'mmdet'
        config = self.detector_config
        if self.cfg.get('launcher', 'none') != 'none' and not is_distributed():
            config = ConfigDict(_of_one_process(config))
        return build_detector(config, self.detector_key, scope)


def _of_one_process(config: Any) -> Any:
    """A copy with BN in place of MMSyncBN, which needs the process group that the launcher creates later."""
    if isinstance(config, (list, tuple)):
        return type(config)(_of_one_process(each) for each in config)
    if not isinstance(config, dict):
        return config
    copied = {key: _of_one_process(value) for key, value in config.items()}
    return copied | dict(type='BN') if copied.get('type') == 'MMSyncBN' else copied


def _is_of_images(data: AnnotatedData) -> bool:
    return issubclass(data.dataset_type, BaseDetDataset)
