"""A run as its config plans it: what the checks look at."""

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
from .annotations import AnnotatedData, data_of, leaves_of, wrap
from .files import missing_files

# XML files and images that are looked at before a run starts; `check` looks at all.
SAMPLE = 1000


class PlannedRun:
    """The config, and what is built of it without weights: its data sets and its detector.

    Args:
        cfg: A loaded config; it is not changed.
        modes: Which of ``'train'``, ``'val'`` and ``'test'`` are about to run.
        path: The config's own path, for messages.
        whole: Whether annotation files and images are read whole; else large annotation files are left
            to the run itself, and of images and XML files a sample is read.
        built: Data sets that the run has built, by mode; large ones are taken from there.
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
        #: Whether weights are trained.
        self.trains = 'train' in modes
        self.path = path
        self.whole = whole
        self.built = built or {}
        self._unreadable: list[UserError] = []
        self._wrapped: dict[str, Any] = {}
        init_default_scope(cfg.get('default_scope') or 'mmdet')

    @property
    def model_config(self) -> dict[str, Any]:
        return self.cfg.get('model') or {}

    @property
    def distils(self) -> bool:
        return str(self.model_config.get('type')).rpartition('.')[2] == 'Distiller'

    @property
    def needs_labels(self) -> bool:
        """Whether the training images need labels."""
        return not (self.distils and self.model_config.get('task_losses') is False)

    @property
    def detector_key(self) -> str:
        """The config key of the detector that is trained."""
        return 'model.student' if self.distils else 'model'

    @property
    def detector_config(self) -> dict[str, Any]:
        return (self.model_config.get('student') or {}) if self.distils else self.model_config

    @cached_property
    def planned_data(self) -> list[AnnotatedData]:
        """All data sets of the config, not read."""
        found: list[AnnotatedData] = []
        for mode in self.modes:
            try:
                leaves = list(data_of(self.cfg, mode))
            except UserError as error:
                self._unreadable.append(error)
                continue
            built = leaves_of(self.built[mode]) if mode in self.built else []
            for index, data in enumerate(leaves):
                data.sample = None if self.whole else SAMPLE
                data.built = built[index] if len(built) == len(leaves) else None
                found.append(data)
        return found

    @cached_property
    def data(self) -> list[AnnotatedData]:
        """The data sets that could be read; why others could not is in :attr:`unreadable`."""
        found: list[AnnotatedData] = []
        for data in self.planned_data:
            if any(True for _ in missing_files(self.cfg, data.config, data.key)):
                continue  # which the check of files reports
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
        """The data set of a loader, wrappers included; None if a part of it has not been read.

        Raises:
            ConfigError: A wrapper cannot be built.
        """
        if mode in self.built:
            return self.built[mode]
        if mode in self._wrapped:
            return self._wrapped[mode]
        planned = [data for data in self.planned_data if data.mode == mode]
        read = [data for data in self.data if data.mode == mode and data.is_local]
        # Of videos a sampler names the frames.
        if not read or len(read) < len(planned) or not all(map(_is_of_images, read)):
            return None
        key = f'{mode}_dataloader'
        with preserve_rng_state():
            inner = iter([data.as_read() for data in read])
            self._wrapped[mode] = wrap(self.cfg[key].dataset, inner, f'{key}.dataset')
        return self._wrapped[mode]

    @property
    def epochs(self) -> int | None:
        """How many epochs are trained; None in a run of iterations."""
        return (self.cfg.get('train_cfg') or {}).get('max_epochs')

    @cached_property
    def iterations(self) -> int | None:
        """How many iterations are trained, about; None if unknown."""
        loop = self.cfg.get('train_cfg') or {}
        if self.epochs is None:
            return loop.get('max_iters')
        loader = self.cfg.get('train_dataloader') or {}
        try:
            dataset = self.dataset('train')
        except UserError:  # which another check reports
            return None
        if dataset is None:
            return None
        batch = loader.get('batch_size', 1) * int(os.environ.get('WORLD_SIZE', 1))
        count = loader.get('num_batch_per_epoch') or math.ceil(len(dataset) / batch)
        return self.epochs * count

    @property
    def unreadable(self) -> list[UserError]:
        """Why data sets could not be read."""
        return self._unreadable if self.data is not None else []

    @cached_property
    def detector(self) -> Detector:
        """The detector that is trained, with weights that mean nothing.

        Raises:
            ConfigError: It cannot be built.
        """
        scope = self.cfg.get('default_scope') or 'mmdet'
        config = self.detector_config
        if self.cfg.get('launcher', 'none') != 'none' and not is_distributed():
            config = ConfigDict(_of_one_process(config))
        return build_detector(config, self.detector_key, scope)


def _of_one_process(config: Any) -> Any:
    """A copy without normalizations that need other processes, which a launcher brings together later."""
    if isinstance(config, (list, tuple)):
        return type(config)(_of_one_process(each) for each in config)
    if not isinstance(config, dict):
        return config
    copied = {key: _of_one_process(value) for key, value in config.items()}
    return copied | dict(type='BN') if copied.get('type') == 'MMSyncBN' else copied


def _is_of_images(data: AnnotatedData) -> bool:
    return issubclass(data.kind, BaseDetDataset)
