"""mmkd/cache/files.py: what is on disk, and what becomes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from mmkd.cache.files import MANIFEST, CacheReader, CacheWriter, read_manifest, verify
from mmkd.errors import CheckpointError, ConfigError, MissingFileError

IDENTITY = dict(teacher=dict(model=dict(type='A', layers=[1, 2])), contents={}, data=dict(images=5))
NAMES = [f'{index} {index}.jpg' for index in range(5)]
SHARD = '00000.safetensors'


def fields(index: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(index)
    return {
        'view': torch.rand(6, generator=generator, dtype=torch.float64),
        'queries.scores': torch.randn(2, 4, 3, generator=generator).half(),
        'places': torch.arange(index * 4).reshape(-1, 4).to(torch.int16),  # of the first: none
        'count': torch.tensor(index),
    }


def write(folder: Path, names: list[str] = NAMES, size: int = 2, finish: bool = True) -> Path:
    writer = CacheWriter(folder, IDENTITY, size)
    for index, name in enumerate(names):
        if name not in writer.done:
            writer.add(name, fields(index))
    if finish:
        writer.finish()
    return folder


def same(found: dict, wanted: dict) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value)
        for name, value in wanted.items()
    )


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_what_is_read_is_what_was_written_shard_by_shard(tmp_path):
    folder = write(tmp_path / 'new' / 'cache')
    assert sorted(os.listdir(folder)) == [
        *(f'0000{number}.safetensors' for number in range(3)),
        MANIFEST,
    ]
    assert len({(folder / name).stat().st_mode for name in os.listdir(folder)}) == 1
    reader = CacheReader(folder)
    assert len(reader) == 5
    assert list(reader) == NAMES
    assert reader.identity == IDENTITY
    for index, name in enumerate(NAMES):
        assert name in reader
        for _ in range(2):  # checked the first time, trusted the second
            assert same(reader[name], fields(index))
    assert verify(folder) == 5


def test_names_may_hold_anything(tmp_path):
    names = ['a/b.jpg', '/', 'ü " \\ \n.png', '__metadata__', '0 ' + 'x' * 300, 'a', 'a/b']
    folder = write(tmp_path / 'cache', names, size=10)
    reader = CacheReader(folder)
    assert list(reader) == names
    assert all(same(reader[name], fields(index)) for index, name in enumerate(names))
    assert CacheWriter(folder, IDENTITY).done == set(names)


def test_nothing_in_it_can_run(tmp_path):
    folder = write(tmp_path / 'cache')
    json.loads((folder / MANIFEST).read_text())
    for path in folder.glob('*.safetensors'):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], 'little')
        header = json.loads(data[8 : 8 + length])
        sizes = [each['data_offsets'][1] for name, each in header.items() if name[:2] != '__']
        assert len(data) == 8 + length + max(sizes)  # a table and numbers, nothing else


@pytest.mark.parametrize('size', [1, 2, 5, 100])
def test_an_unfinished_cache_is_refused_and_can_be_continued(tmp_path, size):
    folder = write(tmp_path / 'cache', NAMES[:3], size, finish=False)
    if size <= 3:
        with pytest.raises(ConfigError, match='is incomplete.*continues it'):
            CacheReader(folder)
    writer = CacheWriter(folder, IDENTITY, size)
    assert writer.done == set(NAMES[: 3 // size * size])  # full shards alone are on disk
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob('*.safetensors')}
    write(folder, size=size)
    reader = CacheReader(folder)
    assert len(reader) == 5
    assert all(same(reader[name], fields(index)) for index, name in enumerate(NAMES))
    assert all((folder / name).stat().st_mtime_ns == time for name, time in before.items())


@pytest.mark.parametrize('shards', [0, 1])
@pytest.mark.parametrize('moment', ['part', 'shard', 'manifest'])
def test_interrupted_in_the_middle_of_a_write(tmp_path, monkeypatch, shards, moment):
    """While a shard is written; before the manifest knows it; while that is written."""
    folder, real = tmp_path / 'cache', os.replace
    write(folder, NAMES[: 2 * shards], finish=False)
    manifests = []

    def interrupted(old: Path, new: Path) -> None:
        manifests.extend([new] * (Path(new).name == MANIFEST))
        is_shard = Path(new).suffix == '.safetensors'
        if (moment == 'part' and is_shard) or (moment == 'manifest' and not is_shard):
            raise KeyboardInterrupt
        real(old, new)
        if moment == 'shard' and is_shard:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(folder, NAMES[: 2 * shards + 2])
    monkeypatch.setattr(os, 'replace', real)
    assert list(folder.glob('*.part')) or moment == 'shard'
    write(folder)
    assert verify(folder) == 5
    assert not list(folder.glob('*.part'))
    assert len(list(folder.glob('*.safetensors'))) == 3


def test_a_finished_cache_can_be_written_again_and_stays(tmp_path):
    folder = write(tmp_path / 'cache')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write(folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_cache_of_something_else_is_not_continued(tmp_path):
    folder = write(tmp_path / 'cache')
    other = json.loads(json.dumps(IDENTITY))
    other['teacher']['model']['layers'] = [1, 3]
    with pytest.raises(ConfigError, match=r'teacher\.model\.layers is \[1, 2\], not \[1, 3\]'):
        CacheWriter(folder, other)
    other = dict(IDENTITY, more=1)
    with pytest.raises(ConfigError, match='its more is null, not 1'):
        CacheWriter(folder, other)


def test_other_peoples_files_are_left_alone(tmp_path):
    (tmp_path / 'precious.txt').write_text('text')
    with pytest.raises(ConfigError, match='is not empty and not a cache'):
        CacheWriter(tmp_path, IDENTITY)
    with pytest.raises(ConfigError, match=r'precious\.txt is a file, not a folder'):
        CacheWriter(tmp_path / 'precious.txt', IDENTITY)
    with pytest.raises(MissingFileError, match='has no cache of a teacher'):
        CacheReader(tmp_path)
    assert os.listdir(tmp_path) == ['precious.txt']


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match='cannot be written'):
        write(tmp_path / 'file' / 'cache')


def test_each_byte_of_the_numbers_is_checked_when_it_is_read(tmp_path):
    folder = write(tmp_path / 'cache')
    flip_byte(folder / SHARD, -1)
    reader = CacheReader(folder)
    damaged = []
    for name in reader:
        try:
            reader[name]
        except CheckpointError as error:
            assert f'damaged at image {name}' in str(error)
            damaged.append(name)
    assert len(damaged) == 1
    with pytest.raises(CheckpointError, match=f'damaged at image {damaged[0]}'):
        verify(folder)
    with pytest.raises(ConfigError, match='does not contain image nobody'):
        reader['nobody']


def test_each_byte_of_the_header_is_checked_when_it_is_opened(tmp_path):
    folder = write(tmp_path / 'cache', NAMES[:1], size=1)
    path = folder / SHARD
    whole = path.read_bytes()
    for position in range(8 + int.from_bytes(whole[:8], 'little')):
        flip_byte(path, position)
        for use in (CacheReader, lambda at: CacheWriter(at, IDENTITY)):
            with pytest.raises(CheckpointError, match=f'{SHARD} is damaged'):
                use(folder)
        path.write_bytes(whole)
    assert verify(folder) == 1


def test_each_byte_of_the_manifest_is_checked(tmp_path):
    folder = write(tmp_path / 'cache')
    path = folder / MANIFEST
    whole = path.read_bytes()
    for position in range(len(whole.rstrip())):
        if whole[position : position + 1].isspace():
            continue  # line breaks and indents are all the same to JSON
        flip_byte(path, position)
        with pytest.raises(CheckpointError, match=f'{MANIFEST} is (damaged|of format)'):
            read_manifest(folder)
    for position in (0, 1, 40, 250):  # once more, for all of them at once
        path.write_bytes(whole[:position])
        with pytest.raises(CheckpointError, match='is damaged'):
            read_manifest(folder)
    for text in ('[]', '3', '{"format": 1}', '\xff'):
        path.write_text(text, encoding='latin-1')
        with pytest.raises(CheckpointError, match='is damaged, or not a cache of mmkd'):
            read_manifest(folder)
    path.write_text('{"format": 99, "shards": [], "complete": true, "identity": {}}')
    with pytest.raises(CheckpointError, match='must have format 1, got 99'):
        read_manifest(folder)


def test_a_missing_or_truncated_shard_is_told(tmp_path):
    folder = write(tmp_path / 'cache')
    path = folder / '00001.safetensors'
    whole = path.read_bytes()
    for size in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        for use in (CacheReader, verify, lambda at: CacheWriter(at, IDENTITY)):
            with pytest.raises(CheckpointError, match=f'must have {len(whole)} bytes, got {size}'):
                use(folder)
    path.unlink()
    for use in (CacheReader, verify, lambda at: CacheWriter(at, IDENTITY)):
        with pytest.raises(MissingFileError, match=r'lacks its file 00001\.safetensors'):
            use(folder)


def test_shards_are_mapped_not_read(tmp_path):
    """The folder may be far larger than memory: opening it does not read its numbers."""
    writer = CacheWriter(tmp_path / 'cache', IDENTITY)
    writer.add('big', dict(value=torch.zeros(30_000_000, dtype=torch.int8)))
    writer.finish()

    def resident() -> int:
        with open('/proc/self/statm') as file:
            return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')

    before = resident()
    reader = CacheReader(tmp_path / 'cache')
    assert resident() - before < 10_000_000
    assert reader['big']['value'].shape == (30_000_000,)
