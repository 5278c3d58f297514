"""The README: short enough to be read, and true."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from test_docs import blocks
from tiny_models import batch

from mmkd.__main__ import tools

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_it_is_short():
    assert len(README.splitlines()) <= 230
    assert len(README.encode()) <= 10_000


def test_the_ten_line_config_is_ten_lines_and_trains(tmp_path):
    (text,) = blocks('python', README)
    assert len(text.strip().splitlines()) <= 12
    # The page about it shows the same.
    assert text in blocks('python', (ROOT / 'docs/get_started/own_pair.md').read_text())
    path = tmp_path / 'own.py'
    path.write_text(text)
    cfg = Config.fromfile(path)
    teacher = cfg.model.teacher
    assert teacher.checkpoint.startswith('https://')
    from mmkd.teachers.config import load_config

    model = load_config(teacher.config).model
    # The URL is the one that mmdet's own index gives for this config.
    index = Path(MODELS.get('FasterRCNN').__module__.replace('.', '/')).parts[0]
    metafile = Path(importlib.util.find_spec(index).submodule_search_locations[0])
    assert teacher.checkpoint in (metafile / '.mim/configs/faster_rcnn/metafile.yml').read_text()
    teacher.checkpoint = str(tmp_path / 'teacher.pth')
    torch.save(dict(state_dict=MODELS.build(model).state_dict()), teacher.checkpoint)
    cfg.model.classes = [str(i) for i in range(80)]
    teacher.classes = cfg.model.classes
    distiller = MODELS.build(cfg.model).train()
    losses = distiller(**distiller.data_preprocessor(batch(size=(64, 96)), True), mode='loss')
    assert {'loss_kd_neck', 'loss_kd_cls'} <= set(losses)


@pytest.mark.parametrize('name', sorted(tools()))
def test_every_tool_is_on_a_page(name):
    pages = [README, *(page.read_text() for page in (ROOT / 'docs').rglob('*.md'))]
    shown = rf'(python -m mmkd|mim run mmkd|make) {name}\b|mim {name} mmkd|tools/{name}\.py'
    assert any(re.search(shown, page) for page in pages)
