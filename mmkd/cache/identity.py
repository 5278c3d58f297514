"""Whose answers a cache holds: teacher, weights, data and pipeline as JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from ..checkpoints import sha256_of
from ..errors import ConfigError

_TUPLE = '__tuple__'


def encode(value: Any) -> Any:
    """A config value as JSON holds it; tuples, which some models insist on, are marked.

    Raises:
        ConfigError: It holds something else than numbers, strings, lists, tuples and dicts.
    """
    if isinstance(value, dict):
        return {str(key): encode(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return {_TUPLE: [encode(each) for each in value]}
    if isinstance(value, list):
        return [encode(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f'the config holds {value!r}, which cannot be written down; name it by a string, as '
        f'registries know it'
    )


def decode(value: Any) -> Any:
    """The inverse of :func:`encode`."""
    if isinstance(value, dict):
        if value.keys() == {_TUPLE}:
            return tuple(decode(each) for each in value[_TUPLE])
        return {key: decode(each) for key, each in value.items()}
    return [decode(each) for each in value] if isinstance(value, list) else value


def checkpoint_identity(checkpoint: str) -> dict[str, str]:
    """Name and SHA-256 of a teacher's weights; of a URL that of the file it was loaded to."""
    path = _local(checkpoint)
    return dict(
        checkpoint=os.path.basename(urlparse(checkpoint).path),
        sha256=sha256_of(path) if path else '',
    )


def check_checkpoint(checkpoint: str, stored: dict[str, Any], name: str, cache: str) -> None:
    """Refuse a cache that other weights wrote. What is not on this machine is taken at its name.

    Raises:
        ConfigError: They differ.
    """
    found = checkpoint_identity(checkpoint)
    key = 'sha256' if found['sha256'] and stored['sha256'] else 'checkpoint'
    if found[key] != stored[key]:
        raise ConfigError(
            f'{name}.cache={cache} was written by other weights ({stored["checkpoint"]}) than '
            f"{name}.checkpoint='{checkpoint}'; write it again with `python tools/cache_teacher.py "
            f'CONFIG`, or leave '
            f'{name}.checkpoint out'
        )


def _local(checkpoint: str) -> Path | None:
    """The file of a checkpoint, where it is on this machine."""
    path = Path(checkpoint)
    if checkpoint.startswith(('http://', 'https://')):
        # Where torch.hub keeps what it has loaded.
        path = (
            Path(torch.hub.get_dir()) / 'checkpoints' / os.path.basename(urlparse(checkpoint).path)
        )
    return path if path.is_file() else None
