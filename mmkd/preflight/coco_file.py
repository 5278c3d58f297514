"""Read an annotation file in COCO format, with a message for each fault of its format."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable
from numbers import Real
from typing import Any

from ..errors import ConfigError, did_you_mean
from ..file_kind import wrong_file_hint

END = 1_000_000  # bytes
# Keys that mmdet reads from each entry of a COCO file.
KEYS = dict(
    images=('id', 'file_name', 'width', 'height'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
    categories=('id', 'name'),
)
HOW_TO_ADD = dict(
    area="set it to the box's width * height",
    iscrowd='set it to 0',
    width="set it to the image's width in pixels",
    height="set it to the image's height in pixels",
)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_box(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(map(_is_number, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# List, key, test of the value, and a description of valid values.
FORMS: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (
    ('images', 'file_name', _is_text, 'a string'),
    ('images', 'width', _is_number, 'a number of pixels'),
    ('images', 'height', _is_number, 'a number of pixels'),
    ('annotations', 'bbox', _is_box, 'four numbers, [x, y, width, height]'),
    ('annotations', 'area', _is_number, 'a number'),
    ('categories', 'name', _is_text, 'a string'),
)


def read_coco(path: str) -> dict[str, list[dict]]:
    """The content of a COCO file; each ``segmentation`` is replaced by its box to save memory.

    Raises:
        ConfigError: The file is not in COCO format; the message names the fault and its correction.
    """
    try:
        with open(path, encoding='utf-8-sig') as file:
            content = json.load(file, object_hook=_replace_segmentation)
    except ValueError as error:
        raise ConfigError(
            f'{path} is not a JSON file{wrong_file_hint(path) or f": {error}"}'
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(
            f'{path}: must be an object with the keys images, annotations and categories, got a '
            f'{type(content).__name__}; if it is a file of detections, name the file of ground truth'
        )
    with open(path, 'rb') as file:
        mark = file.read(3)
    if mark == codecs.BOM_UTF8:
        raise ConfigError(
            f'{path} starts with a byte-order mark, which pycocotools cannot read; save it as UTF-8 without '
            f'a byte-order mark'
        )
    content.setdefault('annotations', [])  # COCO's files of test images have none
    for name, keys in KEYS.items():
        entries = content.get(name)
        if not isinstance(entries, list):
            others = [key for key in content if key not in KEYS]
            found = 'none' if entries is None else f'a {type(entries).__name__}'
            raise ConfigError(
                f"{path}: must have a list '{name}', got {found}{did_you_mean(name, others)}"
            )
        if not all(isinstance(entry, dict) for entry in entries):
            raise ConfigError(f"{path}: the list '{name}' must contain JSON objects, got others")
        for key in keys:
            require_key(path, name, entries, key)
    for name, key, fits, what in FORMS:
        _require_form(path, name, content[name], key, fits, what)
    for name, key in (('images', 'file_name'), ('categories', 'name')):
        _require_own_ids(path, name, content[name], key)
    return content


def require_key(path: str, name: str, entries: list[dict], key: str) -> None:
    """Check that all entries of a list in a COCO file have a key.

    Raises:
        ConfigError: Some entries lack the key; the message counts them.
    """
    # mmdet skips an annotation with `ignore` before it reads other keys.
    lacking = [entry for entry in entries if key not in entry and not entry.get('ignore')]
    if lacking:
        how = HOW_TO_ADD.get(key, 'add it')
        raise ConfigError(
            f"{path}: {len(lacking)} of {len(entries)} {name} have no '{key}' "
            f'(the first: id {lacking[0].get("id", "not given")}); {how}'
        )


def _require_form(
    path: str, name: str, entries: list[dict], key: str, fits: Callable[[Any], bool], what: str
) -> None:
    wrong = [entry for entry in entries if not fits(entry.get(key)) and not entry.get('ignore')]
    if wrong:
        first = wrong[0]
        raise ConfigError(
            f"{path}: '{key}' of {name} must be {what}, got {json.dumps(first.get(key))[:60]} for id "
            f'{first["id"]}{_and_others(len(wrong))}; correct the file'
        )


def _require_own_ids(path: str, name: str, entries: list[dict], key: str) -> None:
    """Check that ids are unique; of two entries with one id, pycocotools drops the first."""
    found: dict[Any, str] = {}
    for entry in entries:
        before = found.setdefault(entry['id'], entry[key])
        if before != entry[key]:
            raise ConfigError(
                f'{path}: {name} must have unique ids, got {entry["id"]!r} for {before} and '
                f'{entry[key]}; renumber them'
            )


def _and_others(count: int) -> str:
    return f' and {count - 1} others' if count > 1 else ''


def categories_at_an_end(path: str) -> list[dict] | None:
    """The categories of a COCO file if its first or last megabyte contains them, else None."""
    with open(path, 'rb') as file:
        parts = [file.read(END)]
        file.seek(-min(END, os.path.getsize(path)), os.SEEK_END)
        parts.append(file.read())
    for part in parts:
        text = part.decode(errors='ignore')
        found = re.search(r'"categories"\s*:\s*', text)
        if found:
            try:
                return json.JSONDecoder().raw_decode(text, found.end())[0]
            except ValueError:  # cut off at the end of this part
                continue
    return None


def _replace_segmentation(entry: dict) -> dict:
    """Replace the segmentation by the box: checks do not read it, but pipelines transform it."""
    if entry.get('segmentation') and _is_box(entry.get('bbox')):
        x, y, width, height = entry['bbox']
        right, low = x + width, y + height
        entry['segmentation'] = [[x, y, right, y, right, low, x, low]]
    else:
        entry.pop('segmentation', None)
    return entry
