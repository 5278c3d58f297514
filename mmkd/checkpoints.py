"""Read checkpoints safely and load them strictly."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, is_distributed
from mmengine.logging import HistoryBuffer
from torch import nn

from .errors import CheckpointError, ConfigError, MissingFileError
from .file_kind import wrong_file_hint

SHOWN_KEYS = 6
# The first digits of a file's SHA-256 in its name, as written by torch hub and mmdet's publishing tool. A
# date such as 20221023 is not a hash.
NAMED_HASH = re.compile(r'-(?!20\d{6}\.)([0-9a-f]{8,64})\.pth?$')


def _history_method(owner: Any, name: str) -> Any:
    """Replacement for ``getattr`` in training checkpoints, which refer to HistoryBuffer's methods with it."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise UnpicklingError(f'attribute {name} of {owner}')
    return getattr(owner, name)


def training_globals() -> list:
    """Return the types in mmengine's training checkpoints besides tensors: logged scalars, numpy arrays."""
    core = getattr(np, '_core', None) or np.core
    dtypes = {type(np.dtype(kind)) for kind in ('f2', 'f4', 'f8', 'i4', 'i8', 'u1', 'u4', 'b1')}
    return [
        HistoryBuffer,
        (_history_method, 'builtins.getattr'),
        # Both names of numpy's internals: numpy 1 and numpy 2 can then read each other's checkpoints.
        *(
            (function, f'numpy.{package}.multiarray.{function.__name__}')
            for function in (core.multiarray._reconstruct, core.multiarray.scalar)
            for package in ('core', '_core')
        ),
        np.ndarray,
        np.dtype,
        bytes,  # the content of an empty array
        slice,
        argparse.Namespace,  # a script's options, in checkpoints of DINO and MAE; it only stores values
        *dtypes,
    ]


def allow_training_checkpoints() -> None:
    """Allow this process to read mmengine's training checkpoints without running code in them.

    torch 2.6 and later refuse the types in such checkpoints besides tensors. mmengine 0.10.7 can then
    neither test nor resume, and later versions fall back to unsafe reading.
    """
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals(training_globals())


@contextmanager
def _training_globals_allowed() -> Iterator[None]:
    """Like ``torch.serialization.safe_globals``, which also removes types that were allowed before."""
    if not hasattr(torch.serialization, 'get_safe_globals'):  # before torch 2.4
        yield
        return
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(training_globals())
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def read_checkpoint(checkpoint: str, where: str, hint: str = '') -> dict:
    """Read weights without running code in the file.

    Args:
        checkpoint: A path or a http(s) URL (stored in torch hub's cache).
        where: The name of the checkpoint in messages, e.g. the config key and its value.
        hint: What to do if the file does not exist.

    Returns:
        A dict with ``state_dict`` and, if the file has them, ``meta`` and other keys.

    Raises:
        MissingFileError: The file does not exist.
        CheckpointError: The file is not a checkpoint, or reading it would run code.
    """
    if not checkpoint or not isinstance(checkpoint, (str, os.PathLike)):
        raise ConfigError(f'{where} names no file{hint and "; "}{hint}')
    with _training_globals_allowed():
        try:
            if str(checkpoint).startswith(('http://', 'https://')):
                content = _from_url(str(checkpoint))
            elif Path(checkpoint).is_file():
                content = torch.load(checkpoint, map_location='cpu', weights_only=True)
            else:
                raise MissingFileError(f'{where} does not exist{hint and "; "}{hint}')
        except MissingFileError:
            raise
        except (
            Exception
        ) as error:  # Python does not document which exceptions a broken pickle raises
            raise _unreadable(str(checkpoint), where, error) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{where} must be a dict of weights by name, got a {type(content).__name__}'
        )
    if 'state_dict' not in content:
        content = dict(state_dict=content, meta={})
    state = content['state_dict']
    if any(key.startswith('module.') for key in state):  # saved from inside a DDP wrapper
        content['state_dict'] = {key.removeprefix('module.'): state[key] for key in state}
    return content


def _unreadable(checkpoint: str, where: str, error: Exception) -> CheckpointError:
    mistaken = wrong_file_hint(checkpoint)
    if mistaken:
        return CheckpointError(f'{where} cannot be read{mistaken}')
    if isinstance(error, UnpicklingError):
        reason = str(error).split('\n')
        cause = next((line for line in reason if 'GLOBAL' in line), None)
        if cause is None and not _is_pickle(checkpoint):
            return CheckpointError(f'{where} cannot be read: it is not a file of weights')
        return CheckpointError(
            f'{where} is refused: it contains more than weights, and reading it could run code '
            f'({(cause or reason[0]).strip()[:160]}); save it again as a state_dict'
        )
    remote = '; download it elsewhere and name the file' if '://' in checkpoint else ''
    return CheckpointError(f'{where} cannot be read: {first_line(error)}{remote}')


def _is_pickle(path: str) -> bool:
    """Whether a file begins like torch's files: a zip archive, or a pickle of protocol 2 or later."""
    if not os.path.isfile(path):
        return True  # a downloaded file
    with open(path, 'rb') as file:
        return file.read(2) in (b'PK', *(bytes((0x80, protocol)) for protocol in range(2, 6)))


def _from_url(url: str) -> Any:
    """Read the checkpoint of a URL. One process per machine downloads it; the others then read the file."""

    def load() -> Any:
        named = bool(NAMED_HASH.search(urlparse(url).path))
        return torch.hub.load_state_dict_from_url(
            url, map_location='cpu', weights_only=True, check_hash=named
        )

    if not is_distributed():
        return load()
    content, failure = None, None
    if os.environ.get('LOCAL_RANK', str(get_rank())) == '0':  # all launchers set LOCAL_RANK
        try:
            content = load()
        except Exception as error:  # any: the other processes wait and must stop too
            failure = error
    # The other processes wait here for the download.
    reasons = [reason for reason in all_gather_object(failure and first_line(failure)) if reason]
    if failure is not None:
        raise failure
    if reasons:
        raise CheckpointError(reasons[0])
    return load() if content is None else content


def hash_mismatch(path: str) -> str | None:
    """Compare a file with the hash in its name, to detect a damaged download.

    Args:
        path: A file of weights.

    Returns:
        A message that names both hashes. None if they agree or the name has no hash.
    """
    named = NAMED_HASH.search(os.path.basename(path))
    if not named or not os.path.isfile(path):
        return None
    found = sha256_of(path)[: len(named[1])]
    if found == named[1]:
        return None
    return f'the SHA-256 of {path} begins with {found}, but its name has {named[1]}'


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_weights(
    model: nn.Module,
    checkpoint: dict,
    where: str,
    optional: str = '',
    allow_left_over: bool = False,
) -> None:
    """Load a checkpoint strictly.

    Args:
        model: The model to load the weights into.
        checkpoint: A dict with ``state_dict``.
        where: The name of the checkpoint in messages.
        optional: Regular expression that matches the full names of keys the checkpoint may lack.
        allow_left_over: Whether the checkpoint may have entries that the model lacks.

    Raises:
        CheckpointError: Keys are missing or unexpected, or shapes differ; the message names them.
    """
    own = model.state_dict()
    state = checkpoint['state_dict']
    problems = []
    try:
        # This copies into the model's own tensors, after the model's hooks that rename keys of older
        # checkpoints.
        found = model.load_state_dict(state, strict=False)
    except RuntimeError:
        other = [
            f'{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the model'
            for key in own
            if key in state and state[key].shape != own[key].shape
        ]
        problems.append(summarize_keys('with another shape', other))
        missing = [key for key in own if key not in state]
        unexpected = [key for key in state if key not in own]
    else:
        missing, unexpected = found.missing_keys, found.unexpected_keys
    # Old checkpoints lack these counters, and evaluation does not use them.
    missing = [
        key
        for key in missing
        if not key.endswith('num_batches_tracked') and not re.fullmatch(optional, key)
    ]
    problems.append(summarize_keys('missing', missing))
    if any(problems) or not allow_left_over:
        problems.append(summarize_keys('unexpected', unexpected))
    problems = [problem for problem in problems if problem]
    if problems:
        prefix = key_prefix(state, own)
        if prefix:
            raise CheckpointError(
                f"{where}: its keys start with '{prefix}'; save them without it: `torch.save(dict(state_dict="
                f"{{k.removeprefix('{prefix}'): v for k, v in state_dict.items()}}), FILE)`"
            )
        raise CheckpointError(
            f'{where} does not belong to this {type(model).__name__} ({len(own)} entries): '
            f'{"; ".join(problems)}'
        )


def key_prefix(found: dict, own: dict) -> str:
    """Return the common prefix of a checkpoint's keys, such as ``teacher.``, that the model's keys lack.

    Empty if more than half of the model's keys are not found with one prefix.
    """
    key = next(iter(own), '')
    for name in found:
        prefix = name.removesuffix(key)
        if prefix != name and prefix.endswith('.'):
            fitting = sum(f'{prefix}{each}' in found for each in own)
            if fitting > 0.5 * len(own):
                return prefix
    return ''


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its class name without a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def summarize_keys(what: str, keys: Sequence[str]) -> str:
    """Return ``3 missing: a, b, c`` with the first few keys; an empty text without keys."""
    if not keys:
        return ''
    more = f', … ({len(keys) - SHOWN_KEYS} more)' if len(keys) > SHOWN_KEYS else ''
    return f'{len(keys)} {what}: {", ".join(keys[:SHOWN_KEYS])}{more}'
