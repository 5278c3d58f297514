"""What mmkd raises when the fault lies in a config, a file or a checkpoint.

The tools print a :class:`UserError` as one line; everything else keeps its traceback. Each class also
derives from the built-in exception a caller would expect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A fault that the user can correct; the message names where and how."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message, quotes and escapes included.
        return ' '.join(str(arg) for arg in self.args)


class ConfigError(UserError, ValueError):
    """A config value, or two that do not fit together."""


class PathError(UserError, KeyError):
    """A name that does not exist: a module path, a class, a recorded output."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is unsafe to read or belongs to another model."""


def did_you_mean(name: str, names: Iterable[str], count: int = 3) -> str:
    """A hint at names close to a wrong one, as a clause to append to a message (may be empty)."""
    names = list(names)
    found = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    # 'bbox_head.fc_cls' resembles 'roi_head.bbox_head.fc_cls' less than they look alike: compare tails too.
    found += [n for n in names if n.endswith('.' + name.split('.')[-1]) and n not in found]
    return f'; near: {", ".join(found[:count])}' if found else ''
