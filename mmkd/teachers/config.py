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
    """Read a config file.

    Args:
        path: The file.
        key: The config key that names the file, for messages.

    Raises:
        MissingFileError: A file that the config inherits from does not exist.
        ConfigError: The file is not valid Python, raises an error, or imports a missing module.
    """
    try:
        return Config.fromfile(path)
    except FileNotFoundError as error:
        raise MissingFileError(
            f'{key}: {path} inherits from a file that does not exist: {error}'
        ) from error
    except SyntaxError as error:
        where = f'{error.filename or path}, line {error.lineno}'
        raise ConfigError(f'{key}: {path} is not valid Python: {error.msg} ({where})') from None
    except (ImportError, ModuleNotFoundError) as error:
        raise ConfigError(
            f'{key}: {path} imports {_module_of(error)}, which cannot be imported; install it, put its '
            f'folder on PYTHONPATH, or remove it from custom_imports'
        ) from error
    except Exception as error:  # the file's code may raise anything
        lines = str(error).strip().splitlines() or ['']
        raise ConfigError(
            f'{key}: {path} cannot be read: {type(error).__name__}: {lines[0]}'
        ) from error


def _module_of(error: BaseException) -> str:
    """The name of the missing module. mmengine's own message lists all of ``sys.path``."""
    chain: BaseException | None = error
    named = str(error).partition(', the current sys.path')[0]
    while chain is not None:
        named = getattr(chain, 'name', None) or named
        chain = chain.__cause__ or chain.__context__
    return named


def load_config(config: str | dict, name: str = 'teacher') -> Config:
    """Load the teacher's config from a path, ``mmdet::…`` or a dict; ``name`` is its key in messages."""
    if isinstance(config, str):
        if '::' in config:
            package = config.partition('::')[0]
            if find_spec(package) is None:  # mmengine would install it without asking
                raise MissingFileError(
                    f'{name}.config: {config!r} needs the package {package}, which is not installed; install '
                    f'it, or name a file'
                )
            try:
                cfg = get_config(config)
            except (FileNotFoundError, ValueError, KeyError) as error:
                raise MissingFileError(
                    f'{name}.config: {config!r} does not exist: {error}'
                ) from None
        elif not Path(config).is_file():
            raise MissingFileError(
                f'{name}.config: {config!r} does not exist (relative to {os.getcwd()})'
            )
        else:
            cfg = read_file(config, f'{name}.config')
    else:
        cfg = Config(dict(config))
    if 'model' not in cfg:
        raise ConfigError(f'{name}.config: {str(config)[:80]!r} has no `model`')
    if cfg.model.get('type') == 'Distiller':
        raise ConfigError(
            f'{name}.config: {str(config)[:80]!r} is a distillation config; name the plain config of '
            f'its student, to which the checkpoints belong'
        )
    return cfg


def config_classes(config: Config) -> Sequence[str] | None:
    """Return the class names of the test or training data, from ``metainfo`` or the data set's class.

    None if the config has neither.
    """
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
