"""Where a tool writes: checked before it works, and written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import ConfigError


def check_output(path: str | os.PathLike[str], option: str, ending: str) -> Path:
    """A file that can be written; its folder is made when it is.

    Args:
        path: The file.
        option: How messages call it.
        ending: What its name must end with.

    Raises:
        ConfigError: It cannot be written.
    """
    file = Path(path)
    if file.suffix.lower() != ending:
        raise ConfigError(f'{option}: must be a file that ends in {ending}, got {path}')
    if file.is_dir():
        raise ConfigError(f'{option}: must be a file, got the folder {path}; name a file in it')
    folder = next(each for each in file.absolute().parents if each.exists())
    if not folder.is_dir():
        raise ConfigError(f'{option}: must be in a folder, got {path}, but {folder} is a file')
    if not os.access(folder, os.W_OK):
        raise ConfigError(f'{option}: must be in a folder you may write to, got {path}')
    return file


def write_files(files: Mapping[Path, Callable[[Path], None]]) -> None:
    """Write several files, or none.

    Args:
        files: What writes each; it is given a path with the same ending.
    """
    with TemporaryDirectory() as folder:
        written = {}
        for number, (file, write) in enumerate(files.items()):
            written[file] = Path(folder) / f'{number}{file.suffix}'
            write(written[file])
        for file, temporary in written.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            # A rename is possible within a file system alone.
            beside = file.with_name(f'.{file.name}.part')
            beside.write_bytes(temporary.read_bytes())
            beside.replace(file)


def write_json(content: Any) -> Callable[[Path], None]:
    """Writes ``content`` to the path that it is given."""

    def write(path: Path) -> None:
        path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')

    return write
