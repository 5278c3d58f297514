"""The files of a cache: the teacher's outputs for each image, in shards that are mapped into memory.

A cache is a folder with ``cache.json``, which identifies the teacher and the data, and shards in the
safetensors format, which cannot contain code. The name of a tensor is ``<image>/<field>``.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, ConfigError, MissingFileError

MANIFEST = 'cache.json'
FORMAT = 1
# Images per shard. A shard is written at once, and an interrupt loses it: about 10 MB for queries of DETR.
SHARD_IMAGES = 512
_IMAGES = 'images'  # the metadata key of a shard with its images and their checksums


class CacheWriter:
    """Writes images to a cache, shard by shard. Images that are already in the cache stay.

    Args:
        folder: The folder of the cache. It is created when the first shard is written.
        identity: Teacher, contents and data set as JSON values. Writing continues an existing cache only
            if its identity is the same.
        shard_images: Number of images per shard.

    Raises:
        ConfigError: The folder contains another cache, or other files.
    """

    def __init__(
        self, folder: str | Path, identity: dict[str, Any], shard_images: int = SHARD_IMAGES
    ) -> None:
        self.folder, self.shard_images = Path(folder), shard_images
        self.identity = json.loads(json.dumps(identity))
        self._shards: list[dict[str, Any]] = []
        #: The images that are written.
        self.done: set[str] = set()
        self._pending: dict[str, dict[str, Tensor]] = {}
        if (self.folder / MANIFEST).is_file():
            self._continue()
        elif self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f'{folder} is a file, not a folder; choose another folder')
        # An interrupt may have left a manifest as a .part file.
        elif self.folder.is_dir() and any(p.suffix != '.part' for p in self.folder.iterdir()):
            raise ConfigError(f'{folder} is not empty and not a cache; choose another folder')

    def _continue(self) -> None:
        manifest = read_manifest(self.folder)
        differing = _differences(manifest['identity'], self.identity)
        if differing:
            raise ConfigError(
                f'{self.folder} is a cache of another teacher or data set: {differing[0]}; delete the '
                f'folder, or choose another'
            )
        self._shards = manifest['shards']
        for path in self.folder.glob('*.part'):  # left by an interrupt
            path.unlink()
        for shard in self._shards:
            with _open(self.folder, shard) as file:
                self.done |= set(json.loads(file.metadata()[_IMAGES]))

    def add(self, image: str, fields: Mapping[str, Tensor]) -> None:
        """Add the tensors of an image. They are written when the shard is full.

        Args:
            image: The key of the image.
            fields: Tensors of any shape, by name.
        """
        self._pending[image] = {name: value.cpu().contiguous() for name, value in fields.items()}
        if len(self._pending) >= self.shard_images:
            self.flush()

    def flush(self) -> None:
        """Write the images added since the last shard as a new shard."""
        if not self._pending:
            return
        from safetensors import SafetensorError

        try:
            self._write_shard()
        except (OSError, SafetensorError) as error:
            raise ConfigError(f'{self.folder} cannot be written: {error}') from None
        self.done |= set(self._pending)
        self._pending = {}

    def finish(self) -> None:
        """Write the last shard and mark the cache as complete."""
        self.flush()
        self._write_manifest(complete=True)

    def _write_shard(self) -> None:
        from safetensors.torch import save_file

        if not self._shards:  # after an interrupt, the cache can then be continued
            self._write_manifest(complete=False)
        name = f'{len(self._shards):05d}.safetensors'
        part = self.folder / f'{name}.part'
        sums = {image: _checksum(fields) for image, fields in self._pending.items()}
        tensors = {
            f'{image}/{field}': value
            for image, fields in self._pending.items()
            for field, value in fields.items()
        }
        save_file(tensors, part, metadata={_IMAGES: json.dumps(sums)})
        # save_file allows access for the owner only; use the permissions of the manifest.
        part.chmod((self.folder / MANIFEST).stat().st_mode)
        shard = dict(
            file=name,
            bytes=part.stat().st_size,
            header_sha256=_header_hash(part),
        )
        os.replace(part, self.folder / name)
        self._shards.append(shard)
        self._write_manifest(complete=False)

    def _write_manifest(self, complete: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = dict(
            format=FORMAT, complete=complete, identity=self.identity, shards=self._shards
        )
        content['sha256'] = _manifest_hash(content)
        part = self.folder / f'{MANIFEST}.part'
        part.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
        os.replace(part, self.folder / MANIFEST)


class CacheReader:
    """Reads a cache. Shards are mapped into memory, so only requested tensors are read.

    Args:
        folder: The folder of the cache.

    Raises:
        MissingFileError: The cache or one of its files does not exist.
        ConfigError: The cache is incomplete.
        CheckpointError: The cache is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(folder)
        if not manifest['complete']:
            raise ConfigError(
                f'the cache {folder} is incomplete; run the same `tools/cache_teacher.py` command again, '
                f'which continues it'
            )
        self.identity: dict[str, Any] = manifest['identity']
        self._files = []
        #: By image: the index of its shard, and its checksum.
        self._locations: dict[str, tuple[int, int]] = {}
        self._fields: dict[str, list[str]] = {}
        self._verified: set[str] = set()
        for number, shard in enumerate(manifest['shards']):
            file = _open(self.folder, shard)
            self._files.append(file)
            for image, checksum in json.loads(file.metadata()[_IMAGES]).items():
                self._locations[image] = (number, checksum)
            for name in file.keys():  # noqa: SIM118  (no mapping)
                image, _, field = name.rpartition('/')
                self._fields.setdefault(image, []).append(field)

    def __len__(self) -> int:
        return len(self._locations)

    def __iter__(self) -> Iterator[str]:
        return iter(self._locations)

    def __contains__(self, image: str) -> bool:
        return image in self._locations

    def __getitem__(self, image: str) -> dict[str, Tensor]:
        """Return the tensors of an image by name. The checksum is verified at the first access.

        Raises:
            ConfigError: The image is not in the cache.
            CheckpointError: The data of the image is damaged.
        """
        if image not in self._locations:
            raise ConfigError(
                f'the cache {self.folder} does not contain image {image}: it was written for another data '
                f'set; write it for this one'
            )
        number, checksum = self._locations[image]
        file = self._files[number]
        fields = {name: file.get_tensor(f'{image}/{name}') for name in self._fields[image]}
        if image not in self._verified:
            if _checksum(fields) != checksum:
                raise CheckpointError(
                    f'the cache {self.folder} is damaged at image {image}; write it again with '
                    f'tools/cache_teacher.py'
                )
            self._verified.add(image)
        return fields


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the content of a cache's ``cache.json``.

    Raises:
        MissingFileError: The file does not exist.
        CheckpointError: The file is damaged or has another format.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise MissingFileError(
            f'{folder} has no cache of a teacher ({path} does not exist); write one with '
            f'`python tools/cache_teacher.py CONFIG`'
        )
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        known = content['format'] == FORMAT
        damaged = known and content.pop('sha256') != _manifest_hash(content)
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f'{path} is damaged, or not a cache of mmkd; delete the folder and write the cache again'
        ) from None
    if not known:
        raise CheckpointError(
            f'{path} must have format {FORMAT}, got {content["format"]}; write the cache again'
        )
    if damaged:
        raise CheckpointError(f'{path} is damaged; delete the folder and write the cache again')
    return content


def verify(folder: str | Path) -> int:
    """Read a whole cache and verify all checksums.

    Returns:
        The number of images.

    Raises:
        CheckpointError: A file has changed since it was written.
    """
    reader = CacheReader(folder)
    for image in reader:
        reader[image]
    return len(reader)


def _checksum(fields: Mapping[str, Tensor]) -> int:
    value = 0
    for name in sorted(fields):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(fields[name].numpy().reshape(-1).view('u1').data, value)
    return value


def _open(folder: Path, shard: dict[str, Any]) -> Any:
    """Map a shard into memory.

    Args:
        folder: The folder of the cache.
        shard: The entry of the shard in the manifest.

    Raises:
        MissingFileError, CheckpointError: The file does not exist, or its size or header has changed.
    """
    from safetensors import safe_open

    path = folder / shard['file']
    if not path.is_file():
        raise MissingFileError(
            f'the cache {folder} lacks its file {shard["file"]}; copy it there, or delete the folder and '
            f'write the cache again'
        )
    if path.stat().st_size != shard['bytes']:
        raise CheckpointError(
            f'{path} must have {shard["bytes"]} bytes, got {path.stat().st_size}: it was not copied '
            f'completely; copy it again'
        )
    if _header_hash(path) != shard['header_sha256']:
        raise CheckpointError(f'{path} is damaged; delete the folder and write the cache again')
    return safe_open(path, framework='pt', device='cpu')


def _header_hash(path: Path) -> str:
    """SHA-256 of the header of a safetensors file, which describes its tensors."""
    with open(path, 'rb') as file:
        size = file.read(8)
        length = min(int.from_bytes(size, 'little'), path.stat().st_size)
        return hashlib.sha256(size + file.read(length)).hexdigest()


def _manifest_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _differences(old: Any, new: Any, where: str = '') -> list[str]:
    """The differences between two JSON values, as texts."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(old.get(key), new.get(key), f'{where}.{key}' if where else key)
        return found
    return [] if old == new else [f'its {where} is {_short(old)}, not {_short(new)}']


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f'{text[:77]}...'
