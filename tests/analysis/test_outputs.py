"""Files are checked before the work and written whole or not at all."""

from __future__ import annotations

import pytest

from mmkd.analysis.outputs import check_output, write_files, write_json
from mmkd.errors import ConfigError


@pytest.mark.parametrize(
    ('path', 'says'),
    [
        ('out.jpg', '--out: must be a file that ends in .png, got out.jpg'),
        ('folder.png', '--out: must be a file, got the folder folder.png'),
        ('file/out.png', '--out: must be in a folder, got file/out.png, but .*file is a file'),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch, path, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match=says):
        check_output(path, '--out', '.png')


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('os.access', lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ConfigError, match='--out: must be in a writable folder'):
        check_output(tmp_path / 'new/out.png', '--out', '.png')


def test_all_files_or_none(tmp_path):
    first, second = tmp_path / 'new/a.json', tmp_path / 'b.json'
    second.write_text('old')
    with pytest.raises(TypeError):
        write_files({second: write_json([1]), first: write_json(object())})
    assert second.read_text() == 'old' and not first.parent.exists()
    write_files({second: write_json([1]), first: write_json({'a': 2.5})})
    assert second.read_text().split() == ['[', '1', ']'] and '2.5' in first.read_text()
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['a.json', 'b.json', 'new']
