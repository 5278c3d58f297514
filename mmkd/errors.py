"""Errors in configs, files and checkpoints.

The tools print a :class:`UserError` as one line. All other exceptions keep their traceback. Each class also
derives from the matching built-in exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can correct. The message names the place and the correction."""

    def __str__(self) -> str:
        # KeyError prints the repr of the message, with quotes and escapes.
        return ' '.join(str(arg) for arg in self.args)


class ConfigError(UserError, ValueError):
    """A wrong config value, or two values that contradict each other."""


class PathError(UserError, KeyError):
    """The name of a module, class or recorded output that does not exist."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that does not exist."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is unsafe to read, or that belongs to another model."""


def did_you_mean(name: str, names: Iterable[str], count: int = 3) -> str:
    """Return ``; near: a, b``, the names most similar to a wrong one, to append to a message.

    The text is empty if no name is similar.
    """
    names = list(names)
    found = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    # difflib does not match 'bbox_head.fc_cls' with 'roi_head.bbox_head.fc_cls': compare the last part too.
    found += [n for n in names if n.endswith('.' + name.split('.')[-1]) and n not in found]
    return f'; near: {", ".join(found[:count])}' if found else ''
