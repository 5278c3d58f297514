"""Reading weights without running code."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import download_worker
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.logging import HistoryBuffer, MessageHub
from tiny_models import faster_rcnn
from torch.multiprocessing import spawn

from mmkd.checkpoints import (
    allow_training_checkpoints,
    hash_mismatch,
    load_weights,
    read_checkpoint,
)
from mmkd.errors import CheckpointError


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_wants_to_run_code_is_refused_unrun(tmp_path):
    path, mark = tmp_path / 'bomb.pth', tmp_path / 'exploded'
    torch.save(dict(state_dict={}, meta=_Bomb(mark)), path)
    with pytest.raises(CheckpointError, match='is refused.*could run code.*mkdir'):
        read_checkpoint(str(path), 'teacher.checkpoint')
    path.write_bytes(pickle.dumps(_Bomb(mark)))
    with pytest.raises(CheckpointError):
        read_checkpoint(str(path), 'teacher.checkpoint')
    assert not mark.exists()


@pytest.mark.parametrize('attribute', ['__init__', '_statistics_methods'])
def test_getattr_in_a_pickle_reaches_only_logged_statistics(tmp_path, attribute):
    class Reach:
        def __reduce__(self):
            from mmengine.logging import HistoryBuffer

            return getattr, (HistoryBuffer, attribute)

    path = tmp_path / 'reach.pth'
    torch.save(dict(state_dict={}, meta=Reach()), path)
    with pytest.raises(CheckpointError, match='is refused'):
        read_checkpoint(str(path), 'teacher.checkpoint')


def test_a_training_checkpoint_with_logged_scalars_is_read(tmp_path):
    hub = MessageHub.get_instance('log')
    hub.update_scalar('train/loss', np.float32(1.5))
    hub.update_info('seed', np.int64(3))
    path = tmp_path / 'epoch_1.pth'
    state = {f'module.{k}': v for k, v in MODELS.build(faster_rcnn()).state_dict().items()}
    torch.save(dict(state_dict=state, meta={}, message_hub=hub.state_dict()), path)
    content = read_checkpoint(str(path), 'teacher.checkpoint')
    assert content['message_hub']['log_scalars']['train/loss'].current() == 1.5
    load_weights(MODELS.build(faster_rcnn()), content, 'file')  # the DDP prefix is gone


def test_an_empty_file_is_told_of(tmp_path):
    path = tmp_path / 'empty.pth'
    path.touch()
    with pytest.raises(CheckpointError, match='^F cannot be read; it is empty'):
        read_checkpoint(str(path), 'F')


def test_what_was_allowed_before_stays_allowed(tmp_path):
    path = tmp_path / 'plain.pth'
    torch.save(dict(state_dict={}), path)
    before = set(map(str, torch.serialization.get_safe_globals()))
    allow_training_checkpoints()
    allowed = set(map(str, torch.serialization.get_safe_globals()))
    read_checkpoint(str(path), 'file')
    assert set(map(str, torch.serialization.get_safe_globals())) == allowed >= before
    torch.save(dict(log=HistoryBuffer()), path)
    torch.load(path, weights_only=True)


def test_one_process_downloads_and_a_failure_reaches_all(tmp_path):
    """The second URL does not exist: no process waits for it for ever."""
    torch.save(dict(state_dict=dict(weight=torch.arange(3.0))), tmp_path / 'teacher.pth')
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            """Quiet."""

    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f'http://127.0.0.1:{server.server_port}'
        urls = [f'{root}/teacher.pth', f'{root}/none.pth']
        spawn(download_worker.work, (2, str(tmp_path), urls), nprocs=2)
        server.shutdown()
    found = [torch.load(tmp_path / f'found{rank}.pth') for rank in range(2)]
    assert asked == ['/teacher.pth', '/none.pth'], found
    for weights, message in found:
        assert torch.equal(weights['weight'], torch.arange(3.0))
        assert 'teacher.checkpoint cannot be read: HTTP Error 404' in message


@pytest.fixture
def server(tmp_path):
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Quiet."""

    handler = partial(Handler, directory=str(tmp_path))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_a_download_has_the_hash_that_its_name_says(tmp_path, server, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    state = dict(state_dict=dict(weight=torch.arange(3.0)))
    torch.save(state, tmp_path / 'x.pth')
    digest = hashlib.sha256((tmp_path / 'x.pth').read_bytes()).hexdigest()
    # A date, and a version, are no hashes.
    for name in (f'x-{digest[:8]}.pth', f'x-{digest}.pth', 'x-20221023.pth', 'x-1.pth'):
        shutil.copy(tmp_path / 'x.pth', tmp_path / name)
        found = read_checkpoint(f'{server}/{name}', 'teacher.checkpoint')
        assert torch.equal(found['state_dict']['weight'], torch.arange(3.0))
    damaged = '0' * 8
    assert not digest.startswith(damaged)
    shutil.copy(tmp_path / 'x.pth', tmp_path / f'x-{damaged}.pth')
    with pytest.raises(CheckpointError, match=rf'invalid hash value .*"{damaged}".*name the file'):
        read_checkpoint(f'{server}/x-{damaged}.pth', 'teacher.checkpoint')
    assert not (tmp_path / f'hub/checkpoints/x-{damaged}.pth').exists()
    assert hash_mismatch(str(tmp_path / f'x-{digest[:8]}.pth')) is None
    problem = hash_mismatch(str(tmp_path / f'x-{damaged}.pth'))
    assert digest[:8] in problem and damaged in problem
    assert hash_mismatch(str(tmp_path / 'x-20221023.pth')) is None
    assert hash_mismatch(str(tmp_path / f'none-{damaged}.pth')) is None
