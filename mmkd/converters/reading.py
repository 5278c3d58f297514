"""Read published weights without running code from the file: torch files and detectron2's pickles."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch

from ..checkpoints import first_line, read_checkpoint
from ..errors import CheckpointError, MissingFileError


def read_weights(checkpoint: str, where: str, hint: str = '') -> dict[str, Any]:
    """Read a published file.

    Args:
        checkpoint: A path, or a http(s) URL, which is cached by torch hub. Files with the extension
            ``.pkl`` are pickles of numpy arrays, all others files of ``torch.save``.
        where: Name of the file in messages.
        hint: What to do if the file does not exist, for messages.

    Returns:
        The content of the file, with tensors in place of arrays.

    Raises:
        MissingFileError: The file does not exist.
        CheckpointError: The file cannot be read, or reading it would run code.
    """
    if not urlparse(str(checkpoint)).path.endswith('.pkl'):
        return read_checkpoint(checkpoint, where, hint)['state_dict']
    try:
        path = _downloaded(checkpoint) if '://' in checkpoint else Path(checkpoint)
        if not path.is_file():
            raise MissingFileError(f'{where} does not exist; {hint}')
        with open(path, 'rb') as file:
            # Old files were written by Python 2, and their strings are bytes in Python 3.
            content = _ArraysOnly(file, encoding='latin1').load()
    except (MissingFileError, CheckpointError):
        raise
    except _Refused as error:
        raise CheckpointError(
            f'{where} is refused: it contains {error} besides numpy arrays, and reading it could run code'
        ) from None
    except Exception as error:  # a broken pickle may raise any exception
        raise CheckpointError(f'{where} cannot be read: {first_line(error)}') from None
    if not isinstance(content, dict):
        raise CheckpointError(f'{where} must contain a dict, got a {type(content).__name__}')
    return _to_tensors(content)


def _downloaded(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))
    return path


def _to_tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _to_tensors(value) for key, value in content.items()}
    if isinstance(content, np.ndarray) and content.dtype.kind in 'fiub':
        return torch.from_numpy(np.ascontiguousarray(content).reshape(content.shape))
    return content


class _Refused(pickle.UnpicklingError):
    """A pickle refers to a name that is not allowed."""


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that builds numpy arrays and plain containers, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The allowed replacement of a global name in the pickle; called by ``load``."""
        # numpy 2 renamed its core module, and a pickle has the name of the version that wrote it.
        found = ALLOWED.get((module.replace('numpy._core', 'numpy.core'), name))
        if found is None:
            raise _Refused(f'{module}.{name}')
        return found


def _to_bytes(text: str, encoding: str) -> bytes:
    """Replacement of ``codecs.encode``, with which pickles of protocol 2 store bytes; latin1 only."""
    if encoding != 'latin1':
        raise _Refused(f'text in {encoding}')
    return text.encode('latin1')


def _no_bytes() -> bytes:
    """Replacement of ``bytes``, with which pickles of protocol 2 store empty bytes."""
    return b''


def _from_buffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """Replacement of ``_frombuffer``, with which pickles of protocol 5 store arrays."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order).copy()


_CORE = getattr(np, '_core', None) or np.core
ALLOWED = {
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    ('numpy.core.multiarray', '_reconstruct'): _CORE.multiarray._reconstruct,
    ('numpy.core.multiarray', 'scalar'): _CORE.multiarray.scalar,
    ('numpy.core.numeric', '_frombuffer'): _from_buffer,
    ('collections', 'OrderedDict'): OrderedDict,
    ('_codecs', 'encode'): _to_bytes,
    ('__builtin__', 'bytes'): _no_bytes,
}
