"""Published files are read, and what they may carry is not run."""

from __future__ import annotations

import argparse
import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mmkd.converters import read_weights
from mmkd.errors import CheckpointError, MissingFileError

ARRAYS = dict(
    model=OrderedDict(
        a=np.arange(6, dtype='f4').reshape(2, 3),
        b=np.float32([[1, 2], [3, 4]]).T,  # Fortran's order
        c=np.array(3.5, dtype='f2'),
        d=np.zeros((0, 2), 'f4'),
    ),
    iteration=np.int64(7),
    __author__='someone',
)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_detectron2_pickles_are_read(tmp_path, protocol):
    path = tmp_path / 'model.pkl'
    path.write_bytes(pickle.dumps(ARRAYS, protocol))
    content = read_weights(str(path), 'F')
    assert content['__author__'] == 'someone'
    for name, array in ARRAYS['model'].items():
        tensor = content['model'][name]
        assert isinstance(tensor, torch.Tensor)
        assert tensor.shape == array.shape
        assert np.array_equal(tensor.numpy(), array)


def test_pickles_of_older_and_newer_numpy_are_read(tmp_path):
    path = tmp_path / 'model.pkl'
    text = pickle.dumps(ARRAYS, 0)
    assert b'numpy' in text
    for old, new in ((b'numpy._core.', b'numpy.core.'), (b'numpy.core.', b'numpy._core.')):
        path.write_bytes(text.replace(old, new))
        assert read_weights(str(path), 'F')['model']['a'][1, 2] == 5


def test_a_pickle_that_wants_to_run_code_is_refused_unrun(tmp_path):
    path, mark = tmp_path / 'bomb.pkl', tmp_path / 'exploded'
    for content in (Bomb(mark), dict(model={}, more=[Bomb(mark)])):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            path.write_bytes(pickle.dumps(content, protocol))
            with pytest.raises(
                CheckpointError, match=r'^F is refused: it contains \w+\.mkdir besides'
            ):
                read_weights(str(path), 'F')
    assert not mark.exists()


@pytest.mark.parametrize(
    'name', ['builtins.getattr', 'builtins.eval', 'numpy.load', 'numpy.core.multiarray.fromfile']
)
def test_names_that_arrays_do_not_need_are_refused(tmp_path, name):
    module, _, function = name.rpartition('.')
    path = tmp_path / 'reach.pkl'
    path.write_bytes(f'c{module}\n{function}\n.'.encode())
    with pytest.raises(CheckpointError, match=f'it contains {name} besides'):
        read_weights(str(path), 'F')


def test_only_the_codec_of_bytes_is_allowed(tmp_path):
    path = tmp_path / 'codec.pkl'
    path.write_bytes(b'c_codecs\nencode\n(Vtext\nVidna\ntR.')
    with pytest.raises(CheckpointError, match='it contains text in idna besides'):
        read_weights(str(path), 'F')


@pytest.mark.parametrize('suffix', ['.pkl', '.pth'])
def test_truncated_and_foreign_files_are_reported_in_one_line(tmp_path, suffix):
    path = tmp_path / f'file{suffix}'
    whole = io.BytesIO()
    torch.save(dict(model=dict(a=torch.ones(99))), whole)
    whole = pickle.dumps(ARRAYS) if suffix == '.pkl' else whole.getvalue()
    for content in (b'', whole[: len(whole) // 2], whole[:20], b'<html>not found</html>', b'\x80'):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match='^F ') as error:
            read_weights(str(path), 'F')
        assert '\n' not in str(error.value)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(CheckpointError):
        read_weights(str(path), 'F')
    with pytest.raises(MissingFileError, match='F does not exist; do this'):
        read_weights(str(tmp_path / f'absent{suffix}'), 'F', 'do this')


def test_options_of_a_training_script_do_no_harm(tmp_path):
    path = tmp_path / 'checkpoint.pth'
    args = argparse.Namespace(lr=0.1, arch='vit_small')
    torch.save(dict(teacher=dict(a=torch.ones(2)), args=args), path)
    assert read_weights(str(path), 'F')['teacher']['a'].sum() == 2


def test_urls_are_kept_in_torch_hubs_cache(tmp_path, monkeypatch):
    (tmp_path / 'published').mkdir()
    published = tmp_path / 'published/model.pkl'
    published.write_bytes(pickle.dumps(ARRAYS))
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    url = published.as_uri()
    assert read_weights(url, 'F')['model']['c'] == 3.5
    published.unlink()
    assert read_weights(url, 'F')['model']['c'] == 3.5
    with pytest.raises(CheckpointError, match='^F cannot be read'):
        read_weights(url.replace('model', 'other'), 'F')
