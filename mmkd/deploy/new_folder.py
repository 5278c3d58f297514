"""A folder that is written as a whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from ..errors import ConfigError


def check_new(out: str | os.PathLike[str]) -> Path:
    """Check that a folder can be written.

    Raises:
        ConfigError: It has content, or its parent cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f'--out: {out} must be a new or an empty folder; name another')
    parent = next(each for each in out.absolute().parents if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f'--out: {out} cannot be written, since {parent} cannot; name another')
    return out


@contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder beside ``out`` to write to, which gets that name at the end.

    After an exception it is removed, and ``out`` is as it was.

    Raises:
        ConfigError: As :func:`check_new`.
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
