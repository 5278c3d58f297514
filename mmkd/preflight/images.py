"""Check that the images of a data set exist, can be read and have the annotated size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import mmcv
from mmdet.datasets import XMLDataset
from PIL import Image

from ..errors import ConfigError, MissingFileError, UserError
from ..file_kind import wrong_file_hint
from .advice import Advice
from .annotations import AnnotatedData
from .boxes import MAX_NAMES, first_few
from .planned_run import SAMPLE, PlannedRun

ORIENTATION = 0x0112  # the EXIF tag
TRANSPOSED = (5, 6, 7, 8)  # values of the tag for images rotated by 90 degrees
# First bytes of a file format and its end marker; some programs write more bytes after the marker.
END_MARKERS = {b'\xff\xd8': b'\xff\xd9', b'\x89PNG': b'IEND', b'BM': b''}
TAIL = 4096  # bytes that are searched for the end marker
MAX_SEARCHED = 20000  # files, in the search for a missing image


def check_image_files(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Every image of the annotation files exists."""
    for data in _local_data(run):
        paths = [image['img_path'] for image in data.kept if image.get('img_path')]
        there = _listing({os.path.dirname(path) for path in paths})
        missing = [path for path in paths if not _is_listed(path, there)]
        if missing:
            yield MissingFileError(
                f'{data.key}: {len(missing)} of {len(paths)} images of {data.path} do not exist: '
                f'{first_few(missing[:MAX_NAMES], len(missing))}; '
                f'{_missing_image_hint(data, missing, len(paths))}'
            )


def check_image_content(run: PlannedRun) -> Iterator[UserError | Advice]:
    """Images can be read and have the width and height of the annotation files."""
    for data in _local_data(run):
        images = [image for image in data.kept if os.path.isfile(image.get('img_path') or '')]
        if not run.whole and len(images) > SAMPLE:
            images = [images[len(images) * i // SAMPLE] for i in range(SAMPLE)]
        unreadable: list[str] = []
        cut: list[str] = []
        turned: list[str] = []
        other: list[str] = []
        ignores = _ignores_orientation(data)
        for image in images:
            size = _image_size(image['img_path'], ignores)
            if size is None:
                unreadable.append(image['img_path'])
                continue
            if not _is_whole(image['img_path']):
                readable = can_be_decoded(image['img_path'])
                (cut if readable else unreadable).append(image['img_path'])
                if not readable:
                    continue
            expected = (image.get('width'), image.get('height'))
            if None in expected or size == expected:
                continue
            (turned if size == expected[::-1] else other).append(image['img_path'])
        if unreadable:
            yield ConfigError(
                f'{data.key}: {len(unreadable)} of {len(images)} images are empty or cannot be read: '
                f'{first_few(unreadable[:MAX_NAMES], len(unreadable))}'
                f'{wrong_file_hint(unreadable[0])}; replace the files, or remove them from {data.path}'
            )
        if cut:
            yield Advice(
                f'{data.key}: {len(cut)} of {len(images)} images are truncated, their missing part is loaded '
                f'as grey or black: {first_few(cut[:MAX_NAMES], len(cut))}; copy or download them again'
            )
        if turned:
            how = (
                "remove color_type='color_ignore_orientation' from LoadImageFromFile"
                if ignores
                else "write dict(type='LoadImageFromFile', color_type='color_ignore_orientation')"
            )
            kind = ConfigError if len(turned) == len(images) else Advice
            yield kind(
                f'{data.key}: {len(turned)} of {len(images)} images are loaded with width and height swapped '
                f'compared to {data.path}: {first_few(turned[:MAX_NAMES], len(turned))}; if their EXIF '
                f'orientation is the cause, {how} in the pipelines'
            )
        if other:
            kind = ConfigError if len(other) == len(images) else Advice
            yield kind(
                f'{data.key}: {len(other)} of {len(images)} images have another size than in {data.path}: '
                f'{first_few(other[:MAX_NAMES], len(other))}; boxes must be in pixels of the image'
            )


def _local_data(run: PlannedRun) -> Iterator[AnnotatedData]:
    return (data for data in run.data if data.is_local)


def _listing(folders: Iterable[str]) -> dict[str, set[str]]:
    """The names of the files in each folder; one listing is faster than one query per file."""
    return {folder: {*_files_in(folder)} for folder in folders}


def _files_in(folder: str) -> Iterator[str]:
    if os.path.isdir(folder or '.'):
        with os.scandir(folder or '.') as entries:
            yield from (
                entry.name for entry in entries if entry.is_file()
            )  # true for links to files


def _is_listed(path: str, there: dict[str, set[str]]) -> bool:
    folder, name = os.path.split(path)
    return name in there[folder] or os.path.isfile(path)


def _missing_image_hint(data: AnnotatedData, missing: list[str], count: int) -> str:
    """The probable cause of missing images, found from the first of them, and its correction."""
    first = missing[0]
    if '\\' in first and os.path.isfile(first.replace('\\', '/')):
        return f'{data.path} separates folders by \\, write / instead'
    if os.path.islink(first):
        return f'{first} is a link to {os.readlink(first)}, which does not exist'
    folder, name = os.path.split(first)
    alike = [each for each in _files_in(folder) if each.casefold() == name.casefold()]
    if alike:
        return f'{alike[0]} exists; write names in {data.path} in the same case'
    stem = os.path.splitext(name)[0]
    other = [each for each in _files_in(folder) if os.path.splitext(each)[0] == stem]
    if other and isinstance(data.dataset, XMLDataset):
        return f'{other[0]} exists, but {data.dataset_type.__name__} reads only .jpg; convert the images'
    if other:
        return f'{other[0]} exists; write names in {data.path} with the extension of the files'
    prefix = data.config.get('data_prefix') or {}
    key = f'{data.key}.data_prefix.{next(iter(prefix), "img")}'
    given = os.path.join(data.config.get('data_root') or '', next(iter(prefix.values()), ''))
    inner = os.path.relpath(first, given or '.')  # as the annotation file has it
    found = _find(os.path.basename(first.replace('\\', '/')), data)
    if found and not os.path.isabs(inner) and found.endswith(f'/{inner}'):
        return f'{inner} is in {found.removesuffix(inner)}; set {key}'
    if found:
        return (
            f'{os.path.basename(found)} is in {os.path.dirname(found)}; write names in {data.path} relative '
            f'to the folder {key}'
        )
    if len(missing) < count:
        return f'add the files, or remove them from {data.path}'
    return f'set {data.key}.data_root and data_prefix'


def _find(name: str, data: AnnotatedData) -> str | None:
    """The path of a file with that name below the data root, or the folder of the annotation file."""
    root = data.config.get('data_root') or os.path.dirname(data.path) or '.'
    seen = 0
    for folder, _, files in os.walk(root):
        if name in files and os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
        seen += len(files)
        if seen > MAX_SEARCHED:
            break
    return None


def _image_size(path: str, ignores_orientation: bool) -> tuple[int, int] | None:
    """Width and height of an image after loading, None if it cannot be read."""
    try:
        with Image.open(path) as image:
            turned = not ignores_orientation and _orientation(image) in TRANSPOSED
            return image.size[::-1] if turned else image.size
    except Exception:  # Pillow raises many kinds, by format
        return None


def _is_whole(path: str) -> bool:
    """Whether an image file is not truncated, judged by the end marker of its format."""
    with open(path, 'rb') as file:
        start = file.read(8)
        mark = next((end for begin, end in END_MARKERS.items() if start.startswith(begin)), None)
        if mark is None:
            return can_be_decoded(path)  # another format, which OpenCV may not support
        file.seek(max(0, os.path.getsize(path) - TAIL))
        if mark in file.read():
            return True
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:  # Pillow raises many kinds, by format
        return False
    return True


def can_be_decoded(path: str) -> bool:
    """Whether mmcv, which the pipelines use, can read an image file."""
    try:
        return mmcv.imread(path) is not None
    except Exception:  # decoders raise many kinds
        return False


def _orientation(image: Any) -> int | None:
    return image.getexif().get(ORIENTATION) if image.format in ('JPEG', 'MPO', 'TIFF') else None


def _ignores_orientation(data: AnnotatedData) -> bool:
    """Whether the pipeline loads images without applying their EXIF orientation."""
    for step in data.config.get('pipeline') or ():
        if step.get('type') == 'LoadImageFromFile':
            backend = step.get('imdecode_backend') or 'cv2'
            kind = step.get('color_type', 'color')
            return 'ignore_orientation' in kind or kind == 'unchanged' or backend == 'tifffile'
    return False
