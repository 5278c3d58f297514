"""Output files of tools: checked before the work starts, and written completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import ConfigError


def check_output(path: str | os.PathLike[str], option: str, ending: str) -> Path:
    """Check that a file can be written; :func:`write_files` creates its folder.

    Args:
        path: The file.
        option: Name of the option, for messages.
        ending: Required file extension.

    Raises:
        ConfigError: The file cannot be written.
    """
    file = Path(path)
    if file.suffix.lower() != ending:
        raise ConfigError(f'{option}: must be a file that ends in {ending}, got {path}')
    if file.is_dir():
        raise ConfigError(f'{option}: must be a file, got the folder {path}; name a file in it')
    folder = next(each for each in file.absolute().parents if each.exists())
    if not folder.is_dir():
        raise ConfigError(
            f'{option}: must be in a folder, got {path}, but {folder} is a file; name another file'
        )
    if not os.access(folder, os.W_OK):
        raise ConfigError(f'{option}: must be in a writable folder, got {path}; name another file')
    return file


def write_files(files: Mapping[Path, Callable[[Path], None]]) -> None:
    """Write several files completely, or none of them.

    Args:
        files: For each file, a function that writes to the temporary path that it gets; the path has the
            same file extension.
    """
    with TemporaryDirectory() as folder:
        written = {}
        for number, (file, write) in enumerate(files.items()):
            written[file] = Path(folder) / f'{number}{file.suffix}'
            write(written[file])
        for file, temporary in written.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            # Files cannot be renamed across file systems, so copy to the folder first.
            part = file.with_name(f'.{file.name}.part')
            part.write_bytes(temporary.read_bytes())
            part.replace(file)


def write_json(content: Any) -> Callable[[Path], None]:
    """A function that writes ``content`` as JSON to a path, for :func:`write_files`."""

    def write(path: Path) -> None:
        path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')

    return write
