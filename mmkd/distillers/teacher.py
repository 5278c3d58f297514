"""The frozen detector a student learns from."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import SampleList
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, MissingFileError
from ..families import family_of
from ..recorder import Recorder, Source

SHOWN_KEYS = 6


class Teacher:
    """A detector from an MMDetection config and checkpoint, frozen and in evaluation mode for good.

    It is no ``nn.Module`` on purpose: nothing that walks a model's modules (optimizer, ``state_dict``,
    ``train()``, EMA, DDP) can meet it, and a deep copy of its owner shares it.

    Args:
        config: The teacher's MMDetection config: a path, ``mmdet::…`` for one that ships with mmdet,
            or a dict that holds ``model``.
        checkpoint: Its weights: a path or a http(s) URL.
        classes: Its class names, when neither checkpoint nor config tells them.
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
        **options: Any,
    ) -> None:
        self.config = load_config(config)
        self.checkpoint = checkpoint
        weights = read_checkpoint(checkpoint, hint=_how_to_get(config))
        with preserve_rng_state(), DefaultScope.overwrite_default_scope('mmdet'):
            self.detector: nn.Module = MODELS.build(self.config.model)
        load_weights(self.detector, weights, f"teacher.checkpoint='{checkpoint}'")
        self.detector.eval().requires_grad_(False)
        self.family = family_of(self.detector, **options)
        self.classes = self._class_names(classes, weights.get('meta', {}))

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self

    def _class_names(self, given: Sequence[str] | None, meta: dict) -> tuple[str, ...] | None:
        dataset_meta = meta.get('dataset_meta') or {}
        names = (
            given
            or dataset_meta.get('classes')
            or dataset_meta.get('CLASSES')  # mmengine before 0.3
            or meta.get('CLASSES')  # mmdet 2.x, which most published checkpoints come from
            or _config_classes(self.config)
        )
        if not names:
            return None
        names = (names,) if isinstance(names, str) else tuple(names)
        count = self.family.num_classes()
        if count is not None and len(names) != count:
            raise ConfigError(
                f'the teacher was built for {count} classes, but its '
                f'{"config key teacher.classes" if given else "checkpoint or config"} names '
                f'{len(names)} ({", ".join(names[:5])}, …); set teacher.classes to the names in order'
            )
        return names

    def num_parameters(self) -> int:
        """Number of weights of the whole detector."""
        return sum(parameter.numel() for parameter in self.detector.parameters())

    def recorder(self, sources: list[Source]) -> Recorder:
        """A recorder for the teacher's modules."""
        return Recorder(self.detector, sources, owner='teacher')

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
        """
        if next(self.detector.parameters()).device != inputs.device:
            self.detector.to(inputs.device)
        own = self.detector.data_preprocessor
        inputs = renormalize(inputs, data_samples, preprocessor, own)
        return self.family.run(inputs, data_samples, parts, student)


def renormalize(
    inputs: Tensor,
    data_samples: SampleList,
    given: BaseDataPreprocessor,
    wanted: BaseDataPreprocessor,
) -> Tensor:
    """Bring a batch from one preprocessor's normalisation to another's.

    Args:
        inputs: Batch as ``given`` made it, shape (N, 3, H, W).
        data_samples: Their ``img_shape`` tells image from padding.
        given: The preprocessor the batch went through.
        wanted: The preprocessor whose output is asked for.

    Returns:
        ``inputs`` itself where both normalise alike, else a new tensor of the same shape.
    """
    flip = _swaps_channels(given) != _swaps_channels(wanted)
    mean, std = _statistics(given, inputs)
    new_mean, new_std = _statistics(wanted, inputs)
    if not flip and torch.equal(mean, new_mean) and torch.equal(std, new_std):
        return inputs
    pixels = inputs * std + mean
    if flip:
        pixels = pixels.flip(1)
    outputs = (pixels - new_mean) / new_std
    # Padding is a constant after normalisation, not a pixel value to be normalised.
    pad = float(getattr(wanted, 'pad_value', 0))
    for output, sample in zip(outputs, data_samples or (), strict=False):
        height, width = sample.metainfo.get('img_shape', output.shape[-2:])[:2]
        output[:, height:] = pad
        output[:, :, width:] = pad
    return outputs


def _swaps_channels(preprocessor: BaseDataPreprocessor) -> bool:
    return bool(getattr(preprocessor, '_channel_conversion', False))


def _statistics(preprocessor: BaseDataPreprocessor, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (1, like.shape[1], 1, 1)
    if not getattr(preprocessor, '_enable_normalize', False):
        return like.new_zeros(shape), like.new_ones(shape)
    mean, std = (stat.to(like).reshape(1, -1, 1, 1) for stat in (preprocessor.mean, preprocessor.std))
    return mean.expand(shape), std.expand(shape)


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Leave the random number generators as they were found.

    What distillation builds must not shift the student's own random numbers, or the same seed would
    give another student.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def load_config(config: str | dict) -> Config:
    """The teacher's config from a path, ``mmdet::…`` or a dict."""
    if isinstance(config, str):
        if '::' in config:
            try:
                cfg = get_config(config)
            except (FileNotFoundError, ValueError, KeyError) as error:
                raise MissingFileError(f"teacher.config='{config}' is not there: {error}") from None
        elif not Path(config).is_file():
            raise MissingFileError(
                f"teacher.config='{config}' does not exist (relative to {os.getcwd()})"
            )
        else:
            cfg = Config.fromfile(config)
    else:
        cfg = Config(dict(config))
    if 'model' not in cfg:
        raise ConfigError(f'teacher.config={str(config)[:80]!r} holds no `model`')
    if cfg.model.get('type') == 'Distiller':
        raise ConfigError(
            f'teacher.config={str(config)[:80]!r} is a distillation config; name the plain config of '
            f'its student, which its checkpoints belong to'
        )
    return cfg


def _how_to_get(config: str | dict) -> str:
    if isinstance(config, str) and '::' not in config:
        return f'train it with `mim train mmkd {os.path.relpath(config)}` or set teacher.checkpoint'
    return 'set teacher.checkpoint to a file or URL of its weights'


def _config_classes(config: Config) -> Sequence[str] | None:
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


def _history_method(owner: Any, name: str) -> Any:
    """Stand-in for ``getattr`` in training checkpoints, which name HistoryBuffer's statistics so."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise UnpicklingError(f'attribute {name} of {owner}')
    return getattr(owner, name)


def _known_harmless() -> list:
    """What mmengine's training checkpoints hold besides tensors: logged scalars and numpy arrays."""
    core = getattr(np, '_core', None) or np.core
    dtypes = {type(np.dtype(kind)) for kind in ('f2', 'f4', 'f8', 'i4', 'i8', 'u1', 'u4', 'b1')}
    return [
        HistoryBuffer,
        (_history_method, 'builtins.getattr'),
        # Both names of numpy's internals, so that checkpoints of numpy 1 and 2 can be read by either.
        *(
            (function, f'numpy.{package}.multiarray.{function.__name__}')
            for function in (core.multiarray._reconstruct, core.multiarray.scalar)
            for package in ('core', '_core')
        ),
        np.ndarray,
        np.dtype,
        slice,
        *dtypes,
    ]


def read_checkpoint(checkpoint: str, hint: str = '') -> dict:
    """Read weights without running any code the file may carry.

    Args:
        checkpoint: A path or a http(s) URL (kept in torch hub's cache).
        hint: What to do when there is no such file.

    Returns:
        A dict with ``state_dict`` and, where the file has them, ``meta`` and more.

    Raises:
        MissingFileError: There is no such file.
        CheckpointError: The file is no checkpoint, or wants to run code.
    """
    where = f"teacher.checkpoint='{checkpoint}'"
    if not checkpoint or not isinstance(checkpoint, (str, os.PathLike)):
        raise ConfigError(f'{where} names no file; {hint}')
    safe = getattr(torch.serialization, 'safe_globals', None)  # torch 2.5 and later
    with safe(_known_harmless()) if safe else nullcontext():
        try:
            if str(checkpoint).startswith(('http://', 'https://')):
                content = torch.hub.load_state_dict_from_url(
                    checkpoint, map_location='cpu', weights_only=True
                )
            elif Path(checkpoint).is_file():
                content = torch.load(checkpoint, map_location='cpu', weights_only=True)
            else:
                raise MissingFileError(f'{where} does not exist; {hint}')
        except MissingFileError:
            raise
        except UnpicklingError as error:
            reason = str(error).split('\n')
            blame = next((line for line in reason if 'GLOBAL' in line), reason[0]).strip()
            raise CheckpointError(
                f'{where} is refused: it is no plain set of weights, and reading it could run code '
                f'({blame[:160]}); save it again as a state_dict'
            ) from None
        except (OSError, RuntimeError, EOFError) as error:
            raise CheckpointError(f'{where} cannot be read: {str(error).splitlines()[0]}') from None
    if not isinstance(content, dict):
        raise CheckpointError(f'{where} holds a {type(content).__name__}, not weights by name')
    if 'state_dict' not in content:
        content = dict(state_dict=content, meta={})
    state = content['state_dict']
    if any(key.startswith('module.') for key in state):  # saved from inside a DDP wrapper
        content['state_dict'] = {key.removeprefix('module.'): state[key] for key in state}
    return content


def load_weights(model: nn.Module, checkpoint: dict, where: str) -> None:
    """Load a checkpoint strictly.

    Raises:
        CheckpointError: Keys are missing or left over, or shapes differ; they are named.
    """
    own = model.state_dict()
    state = checkpoint['state_dict']
    problems = []
    try:
        # assign=False copies into the model's own tensors; the model's own hooks that rename keys of
        # older checkpoints run first.
        found = model.load_state_dict(state, strict=False)
    except RuntimeError:
        other = [
            f'{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the model'
            for key in own
            if key in state and state[key].shape != own[key].shape
        ]
        problems.append(_listing('of another shape', other))
        missing = [key for key in own if key not in state]
        unexpected = [key for key in state if key not in own]
    else:
        missing, unexpected = found.missing_keys, found.unexpected_keys
    # Counters that old checkpoints lack and evaluation does not use.
    missing = [key for key in missing if not key.endswith('num_batches_tracked')]
    problems += [_listing('missing', missing), _listing('left over', unexpected)]
    problems = [problem for problem in problems if problem]
    if problems:
        raise CheckpointError(
            f'{where} does not belong to this {type(model).__name__} ({len(own)} entries): '
            f'{"; ".join(problems)}'
        )


def _listing(what: str, keys: Sequence[str]) -> str:
    if not keys:
        return ''
    more = f', … ({len(keys) - SHOWN_KEYS} more)' if len(keys) > SHOWN_KEYS else ''
    return f'{len(keys)} {what}: {", ".join(keys[:SHOWN_KEYS])}{more}'
