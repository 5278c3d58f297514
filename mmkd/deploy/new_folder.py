"""Write a folder completely or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from ..errors import ConfigError


def check_new(out: str | os.PathLike[str]) -> Path:
    """Check that a folder can be written; returns its path.

    Raises:
        ConfigError: The folder is not empty, or its parent is not writable.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f'--out: {out} must be a new or an empty folder; name another')
    parent = next(each for each in out.absolute().parents if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(
            f'--out: {out} cannot be written, as {parent} is not writable; name another'
        )
    return out


@contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder to write to; it is renamed to ``out`` when the ``with`` block ends.

    After an exception the folder is removed, and ``out`` is unchanged.

    Raises:
        ConfigError: Same as :func:`check_new`.
    """
    out = check_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
