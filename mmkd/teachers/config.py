"""Read the MMDetection config of a teacher."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.hub import get_config

from ..errors import ConfigError, MissingFileError


def read_file(path: str, key: str) -> Config:
    """A config file.

    Args:
        path: The file.
        key: What names it, for messages.

    Raises:
        MissingFileError: It inherits from a file that is not there.
        ConfigError: Python cannot run it, or what it imports is not there.
    """
    try:
        return Config.fromfile(path)
    except FileNotFoundError as error:
        raise MissingFileError(
            f'{key}: {path} inherits from a file that is not there: {error}'
        ) from error
    except SyntaxError as error:
        where = f'{error.filename or path}, line {error.lineno}'
        raise ConfigError(f'{key}: {path} is not valid Python: {error.msg} ({where})') from None
    except (ImportError, ModuleNotFoundError) as error:
        raise ConfigError(
            f'{key}: {path} imports what cannot be imported: {_module_of(error)}; install it, put its '
            f'folder on PYTHONPATH, or take it out of custom_imports'
        ) from error
    except Exception as error:  # whatever the file's own code raises
        lines = str(error).strip().splitlines() or ['']
        raise ConfigError(
            f'{key}: {path} cannot be read: {type(error).__name__}: {lines[0]}'
        ) from error


def _module_of(error: BaseException) -> str:
    """The module that an import did not find; mmengine's own message lists all of ``sys.path``."""
    chain: BaseException | None = error
    named = str(error).partition(', the current sys.path')[0]
    while chain is not None:
        named = getattr(chain, 'name', None) or named
        chain = chain.__cause__ or chain.__context__
    return named


def load_config(config: str | dict, name: str = 'teacher') -> Config:
    """The teacher's config from a path, ``mmdet::…`` or a dict; ``name`` is its own in messages."""
    if isinstance(config, str):
        if '::' in config:
            package = config.partition('::')[0]
            if find_spec(package) is None:  # which mmengine would install, without asking
                raise MissingFileError(
                    f"{name}.config='{config}' needs the package {package}, which is not installed; install "
                    f'it, or name a file'
                )
            try:
                cfg = get_config(config)
            except (FileNotFoundError, ValueError, KeyError) as error:
                raise MissingFileError(f"{name}.config='{config}' is not there: {error}") from None
        elif not Path(config).is_file():
            raise MissingFileError(
                f"{name}.config='{config}' does not exist (relative to {os.getcwd()})"
            )
        else:
            cfg = read_file(config, f'{name}.config')
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
