"""tools/convert_checkpoint.py."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from mmdet.registry import MODELS
from original_vits import ARCH, OriginalViT, OriginalViTDet

from mmkd.converters import FORMATS, convert


@pytest.fixture
def dino(tmp_path):
    state = OriginalViT(5, 4).state_dict()
    torch.save(state, tmp_path / 'dino.pth')
    return state


def refused(tool, capsys, *arguments) -> str:
    assert tool('convert_checkpoint', *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_what_it_writes_is_what_pretrained_reads(tool, dino, tmp_path, capsys):
    assert tool('convert_checkpoint', 'dino', 'dino.pth', 'new/out.pth') == 0
    assert 'new/out.pth: 42 entries from dino.pth' in capsys.readouterr().out
    assert os.listdir('new') == ['out.pth']  # nothing temporary
    init_cfg = dict(type='Pretrained', checkpoint='new/out.pth')
    backbone = dict(
        type='VisionTransformer', arch=ARCH, img_size=20, patch_size=4, init_cfg=init_cfg
    )
    model = MODELS.build(backbone)
    model.init_weights()
    wanted = convert('dino', dino)
    assert all(model.state_dict()[key].equal(wanted[key]) for key in wanted)


def test_options(tool, dino, tmp_path):
    assert tool('convert_checkpoint', 'dino', 'dino.pth', 'out.pth', '--no-class-token') == 0
    state = torch.load('out.pth', weights_only=True)['state_dict']
    assert 'cls_token' not in state
    assert state['pos_embed'].shape[1] == 25

    detector = OriginalViTDet(5, 4, 2).state_dict()
    arrays = {key: value.numpy() for key, value in detector.items()}
    (tmp_path / 'vitdet.pkl').write_bytes(pickle.dumps(dict(model=arrays)))
    assert tool('convert_checkpoint', 'vitdet', 'vitdet.pkl', 'both.pth') == 0
    both = torch.load('both.pth', weights_only=True)['state_dict']
    assert {key.split('.')[0] for key in both} == {'backbone', 'neck'}
    assert tool('convert_checkpoint', 'vitdet', 'vitdet.pkl', 'one.pth', '--backbone-only') == 0
    one = torch.load('one.pth', weights_only=True)['state_dict']
    assert all(value.equal(both[f'backbone.{key}']) for key, value in one.items())


def test_it_overwrites_only_when_told_to(tool, dino, tmp_path, capsys):
    (tmp_path / 'out.pth').write_text('precious')
    line = refused(tool, capsys, 'dino', 'dino.pth', 'out.pth')
    assert line == 'mmkd: error: OUT: out.pth exists already; overwrite it with --force'
    assert (tmp_path / 'out.pth').read_text() == 'precious'
    line = refused(tool, capsys, 'dinov2', 'dino.pth', 'out.pth', '--force')
    assert 'looks like dino or mae, not dinov2' in line
    assert (tmp_path / 'out.pth').read_text() == 'precious'
    assert tool('convert_checkpoint', 'dino', 'dino.pth', 'out.pth', '--force') == 0
    assert 'cls_token' in torch.load('out.pth', weights_only=True)['state_dict']
    line = refused(tool, capsys, 'dino', 'dino.pth', 'dino.pth', '--force')
    assert 'OUT: dino.pth is the file to convert' in line


def test_mistakes_are_reported_in_one_line_and_nothing_is_written(tool, dino, tmp_path, capsys):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'half.pth').write_bytes((tmp_path / 'dino.pth').read_bytes()[:3000])
    before = sorted(os.listdir(tmp_path))
    for arguments, message in (
        (('dyno', 'dino.pth', 'out.pth'), 'source: must be one of dino, dinov2, mae'),
        (('dino', 'absent.pth', 'out.pth'), 'absent.pth does not exist; name a file or a URL'),
        (('dino', 'half.pth', 'out.pth'), 'half.pth cannot be read'),
        (('dino', 'dino.pth', 'folder'), 'OUT: must be a file, got the folder folder'),
        (('dino', 'dino.pth', 'dino.pth/out.pth'), 'dino.pth/out.pth cannot be written'),
    ):
        assert message in refused(tool, capsys, *arguments)
    assert sorted(os.listdir(tmp_path)) == before


def test_help_names_every_source(tool, capsys):
    assert tool('convert_checkpoint', '-h') == 0
    text = ' '.join(capsys.readouterr().out.split())
    assert ', '.join(FORMATS) in text
