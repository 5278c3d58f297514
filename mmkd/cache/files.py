"""The files of a cache: a teacher's outputs for each image, in shards that are mapped into memory.

A folder with ``cache.json``, which identifies the teacher and the data, and shards in the
safetensors format: tensors by name, which cannot carry code. A tensor is called ``<image>/<field>``.
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
# Written at once and lost at an interrupt: about 10 MB of the queries of a DETR.
SHARD_IMAGES = 512
_IMAGES = 'images'  # the key of a shard's own table: its images, and the checksum of each


class CacheWriter:
    """Adds images to a cache, shard by shard; what is there already stays.

    Args:
        folder: Where to; made when the first shard is written.
        identity: What makes two caches the same: teacher, contents, data set, as JSON holds it. A
            cache that another one began cannot be continued.
        shard_images: How many images a shard has.

    Raises:
        ConfigError: The folder holds another cache, or other files.
    """

    def __init__(
        self, folder: str | Path, identity: dict[str, Any], shard_images: int = SHARD_IMAGES
    ) -> None:
        self.folder, self.shard_images = Path(folder), shard_images
        self.identity = json.loads(json.dumps(identity))
        self._shards: list[dict[str, Any]] = []
        #: Images that are written.
        self.done: set[str] = set()
        self._pending: dict[str, dict[str, Tensor]] = {}
        if (self.folder / MANIFEST).is_file():
            self._continue()
        elif self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f'{folder} is a file, no folder; choose another')
        # An interrupt may have left a manifest that was not yet in place.
        elif self.folder.is_dir() and any(p.suffix != '.part' for p in self.folder.iterdir()):
            raise ConfigError(f'{folder} is not empty and holds no cache; choose another folder')

    def _continue(self) -> None:
        manifest = read_manifest(self.folder)
        differing = _differences(manifest['identity'], self.identity)
        if differing:
            raise ConfigError(
                f'{self.folder} holds a cache of something else: {differing[0]}; delete the folder or choose '
                f'another'
            )
        self._shards = manifest['shards']
        for path in self.folder.glob('*.part'):  # an interrupt's
            path.unlink()
        for shard in self._shards:
            with _open(self.folder, shard) as file:
                self.done |= set(json.loads(file.metadata()[_IMAGES]))

    def add(self, image: str, fields: Mapping[str, Tensor]) -> None:
        """Add what there is of an image; written when a shard is full.

        Args:
            image: Its name.
            fields: Tensors of any shape by name.
        """
        self._pending[image] = {name: value.cpu().contiguous() for name, value in fields.items()}
        if len(self._pending) >= self.shard_images:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last shard as a shard of its own."""
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
        """Write the last shard and say that no image is missing."""
        self.flush()
        self._write_manifest(complete=True)

    def _write_shard(self) -> None:
        from safetensors.torch import save_file

        if not self._shards:  # so that an interrupt leaves a cache, which can be continued
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
        # It writes for the owner alone, but others may read what they may read of the manifest.
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
    """Reads a cache. Shards are mapped into memory, so that only what is asked for is read.

    Args:
        folder: Its folder.

    Raises:
        MissingFileError: There is no cache, or one of its files is gone.
        ConfigError: It was not finished.
        CheckpointError: It is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(folder)
        if not manifest['complete']:
            raise ConfigError(
                f'the cache {folder} was not finished; run the same `tools/cache_teacher.py` again, '
                f'which goes '
                f'on where it stopped'
            )
        self.identity: dict[str, Any] = manifest['identity']
        self._files = []
        #: Of each image the number of its shard and its checksum.
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
        """What there is of an image; checked when it is read for the first time.

        Raises:
            ConfigError: The cache does not have it.
            CheckpointError: It was damaged.
        """
        if image not in self._locations:
            raise ConfigError(
                f'the cache {self.folder} has nothing of image {image}: it was written for another data set'
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
    """The content of a cache's ``cache.json``.

    Raises:
        MissingFileError: It is not there.
        CheckpointError: It is no cache of this format.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise MissingFileError(
            f'there is no cache of a teacher in {folder} (no {path}); write one with '
            f'`python tools/cache_teacher.py CONFIG`'
        )
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        known = content['format'] == FORMAT
        damaged = known and content.pop('sha256') != _manifest_hash(content)
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f'{path} is damaged, or no cache of mmkd') from None
    if not known:
        raise CheckpointError(
            f'{path} is of format {content["format"]}, this mmkd reads {FORMAT}; write the cache again'
        )
    if damaged:
        raise CheckpointError(f'{path} is damaged; delete the folder and write the cache again')
    return content


def verify(folder: str | Path) -> int:
    """Read a cache as a whole and compare it with its checksums.

    Returns:
        Number of images.

    Raises:
        CheckpointError: A file is not what was written.
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
        folder: Of the cache.
        shard: Its entry in the manifest.

    Raises:
        MissingFileError, CheckpointError: It is gone, or not what was written, as far as size and header
            tell.
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
            f'{path} has {path.stat().st_size} bytes in place of {shard["bytes"]}: it was not copied '
            f'as a whole'
        )
    if _header_hash(path) != shard['header_sha256']:
        raise CheckpointError(f'{path} is damaged; delete the folder and write the cache again')
    return safe_open(path, framework='pt', device='cpu')


def _header_hash(path: Path) -> str:
    """SHA-256 of the description of a safetensors file's tensors, which stands before them."""
    with open(path, 'rb') as file:
        size = file.read(8)
        length = min(int.from_bytes(size, 'little'), path.stat().st_size)
        return hashlib.sha256(size + file.read(length)).hexdigest()


def _manifest_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _differences(old: Any, new: Any, where: str = '') -> list[str]:
    """What differs between two JSON values, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(old.get(key), new.get(key), f'{where}.{key}' if where else key)
        return found
    return [] if old == new else [f'its {where} is {_short(old)}, not {_short(new)}']


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f'{text[:77]}...'
