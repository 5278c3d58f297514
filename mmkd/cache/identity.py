"""Identify the teacher of a cache: config values and checkpoint as JSON."""

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
    """Convert a config value to a JSON value. Tuples, which some models require, are marked.

    Raises:
        ConfigError: The value contains something other than numbers, strings, lists, tuples and dicts.
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
        f'the config contains {value!r}, which cannot be stored as JSON; use the name under which it is '
        f'registered'
    )


def decode(value: Any) -> Any:
    """Convert a JSON value back to a config value: the inverse of :func:`encode`."""
    if isinstance(value, dict):
        if value.keys() == {_TUPLE}:
            return tuple(decode(each) for each in value[_TUPLE])
        return {key: decode(each) for key, each in value.items()}
    return [decode(each) for each in value] if isinstance(value, list) else value


def checkpoint_identity(checkpoint: str) -> dict[str, str]:
    """Return name and SHA-256 of a teacher's weights; for a URL, those of the downloaded file."""
    path = _local(checkpoint)
    return dict(
        checkpoint=os.path.basename(urlparse(checkpoint).path),
        sha256=sha256_of(path) if path else '',
    )


def check_checkpoint(checkpoint: str, stored: dict[str, Any], name: str, cache: str) -> None:
    """Check that a cache was written with these weights. A missing file is compared by its name.

    Raises:
        ConfigError: The weights differ.
    """
    found = checkpoint_identity(checkpoint)
    key = 'sha256' if found['sha256'] and stored['sha256'] else 'checkpoint'
    if found[key] != stored[key]:
        raise ConfigError(
            f'{name}.checkpoint: must be {stored["checkpoint"]}, with which the cache {cache} was written, '
            f'got other weights ({checkpoint}); write the cache again with `python tools/cache_teacher.py '
            f'CONFIG`, or remove {name}.checkpoint'
        )


def _local(checkpoint: str) -> Path | None:
    """The file of a checkpoint, or None if it is not on this machine."""
    path = Path(checkpoint)
    if checkpoint.startswith(('http://', 'https://')):
        # The folder in which torch.hub stores downloads.
        path = (
            Path(torch.hub.get_dir()) / 'checkpoints' / os.path.basename(urlparse(checkpoint).path)
        )
    return path if path.is_file() else None
