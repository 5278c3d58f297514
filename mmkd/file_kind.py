"""Recognise wrong files: empty files, Git LFS pointers, web pages."""

from __future__ import annotations

import os

LFS = b'version https://git-lfs'


def wrong_file_hint(path: str | os.PathLike[str]) -> str:
    """Explain why a file cannot be read, as a clause to append to a message.

    Args:
        path: A file that could not be read in the expected format.

    Returns:
        ``; it is …; …`` with what to do, for an empty file, a Git LFS pointer or a web page. Empty for
        other files.
    """
    try:
        with open(path, 'rb') as file:
            start = file.read(200)
    except OSError:
        return ''
    if not start:
        return '; it is empty: download or copy it again'
    if start.startswith(LFS):
        return '; it is a Git LFS pointer: get the file with `git lfs pull`'
    if start.lstrip()[:5].lower() in (b'<!doc', b'<html'):
        return '; it is a web page, not the file behind the link: download it again'
    return ''
