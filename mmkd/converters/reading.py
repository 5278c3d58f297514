"""Read what is published, without running code it may carry: files of torch, and detectron2's pickles."""

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
        checkpoint: A path or a http(s) URL (kept in torch hub's cache). Ending in ``.pkl``, a pickle of
            numpy arrays; else a file of ``torch.save``.
        where: How messages call it.
        hint: What to do when there is no such file.

    Returns:
        The file's content, its arrays as tensors.

    Raises:
        MissingFileError: There is no such file.
        CheckpointError: It cannot be read, or wants to run code.
    """
    if not urlparse(str(checkpoint)).path.endswith('.pkl'):
        return read_checkpoint(checkpoint, where, hint)['state_dict']
    try:
        path = _downloaded(checkpoint) if '://' in checkpoint else Path(checkpoint)
        if not path.is_file():
            raise MissingFileError(f'{where} does not exist; {hint}')
        with open(path, 'rb') as file:
            # Old ones are of Python 2, whose bytes are text to Python 3.
            content = _ArraysOnly(file, encoding='latin1').load()
    except (MissingFileError, CheckpointError):
        raise
    except _Refused as error:
        raise CheckpointError(
            f'{where} is refused: it holds {error} besides numpy arrays, and reading it could run code'
        ) from None
    except Exception as error:  # what a broken pickle raises is left open by Python's manual
        raise CheckpointError(f'{where} cannot be read: {first_line(error)}') from None
    if not isinstance(content, dict):
        raise CheckpointError(f'{where} holds a {type(content).__name__}, not weights by name')
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
    """A name that a pickle wants and shall not have."""


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and plain containers, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 has renamed its core, and a pickle names what wrote it.
        found = ALLOWED.get((module.replace('numpy._core', 'numpy.core'), name))
        if found is None:
            raise _Refused(f'{module}.{name}')
        return found


def _to_bytes(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 spell bytes; of all codecs this one."""
    if encoding != 'latin1':
        raise _Refused(f'text in {encoding}')
    return text.encode('latin1')


def _no_bytes() -> bytes:
    """How they spell none at all."""
    return b''


def _from_buffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """How pickles of protocol 5 spell arrays."""
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
