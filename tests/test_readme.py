"""The README's commands and configs are the ones that work."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from tiny_models import batch

from mmkd.__main__ import tools

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', page, re.S)


def commands(page: str) -> list[str]:
    return [line for block in blocks('bash', page) for line in block.splitlines() if line.strip()]


COMMANDS = commands(README)
OF_FIGURES = commands((ROOT / 'docs/figures.md').read_text())
INLINE = [
    text
    for text in re.findall(r'`((?:mim|make|python -m mmkd|tools/dist_)[^`]*)`', README)
    if len(text.split()) > (2 if text.startswith('mim') else 1)
]


def parse(tool: str, arguments: list[str], monkeypatch):
    """The tool's own parser on these arguments; exits on an option it does not have."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    spec = importlib.util.spec_from_file_location(f'tool_{tool}', tools()[tool])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    return module.parse_args()


@pytest.mark.parametrize('command', dict.fromkeys([*COMMANDS, *INLINE, *OF_FIGURES]))
def test_a_command_names_what_exists(command, monkeypatch):
    words = shlex.split(command)
    if words[0] == 'make':
        targets = re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.M)
        assert words[1] in targets
    elif words[:2] == ['pip', 'install']:
        installed = [word for word in words[2:] if not word.startswith('-')]
        extras = re.findall(r'^(\w+) = \[', (ROOT / 'pyproject.toml').read_text(), re.M)
        pinned = re.search(
            r'^torch==.*$', (ROOT / 'requirements/constraints.txt').read_text(), re.M
        )
        allowed = {'.', pinned[0], 'setuptools', 'wheel', *(f'.[{extra}]' for extra in extras)}
        assert set(installed) <= allowed
    elif words[0] in ('tools/dist_train.sh', 'tools/dist_test.sh'):
        assert (ROOT / words[0]).stat().st_mode & 0o100
    elif words[0] == 'mim' or words[:3] == ['python', '-m', 'mmkd']:
        tool, rest = (words[1], words[3:]) if words[0] == 'mim' else (words[3], words[4:])
        if words[0] == 'mim':
            assert words[2] == 'mmkd'
            if tool == 'run':
                tool, rest = rest[0], rest[1:]
        if tool not in tools():
            assert tool == 'TOOL'
            return
        rest = [
            'FILE' if word == '-C' else word for word in rest if word != 'FILE' or '-C' not in rest
        ]
        rest = [word for word in rest if not (word == 'FILE' and 'epoch_10' in command)]
        if rest == ['-h']:
            with pytest.raises(SystemExit, match='0'):
                parse(tool, rest, monkeypatch)
            return
        args = parse(tool, rest, monkeypatch)
        config = getattr(args, 'config', None)
        if config and config.startswith('configs/') and '…' not in config:
            assert (ROOT / config).is_file(), config
    else:
        pytest.fail(f'a command nobody tests: {command}')


def test_every_shipped_config_is_there():
    assert {'make demo', 'make test'} <= set(COMMANDS)
    named = {word for line in COMMANDS for word in line.split() if word.startswith('configs/')}
    trained = {name for name in named if not name.startswith('configs/demo/')}
    base, names = re.search(
        r'`(configs/ablations/\S*_)NAME.py`:\n\n(.*?)\n\n', README, re.S
    ).groups()
    listed = {
        f'{base}{name}.py'
        for row in names.splitlines()[2:]
        for name in re.findall(r'`([\w-]+)`', row.split('|')[1])
    }
    shipped = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'configs').rglob('*.py')
        if not {'_base_', 'demo', 'methods'} & set(path.parts)
    }
    assert trained | listed == shipped


def test_the_ten_line_config_is_ten_lines_and_trains(tmp_path):
    text = next(block for block in blocks('python') if 'Distiller' in block)
    assert len(text.strip().splitlines()) <= 12
    path = tmp_path / 'own.py'
    path.write_text(text)
    cfg = Config.fromfile(path)
    teacher = cfg.model.teacher
    assert teacher.checkpoint.startswith('https://')
    from mmkd.teachers.config import load_config

    model = load_config(teacher.config).model
    # The address is the one that mmdet's own index gives for this config.
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


def test_the_ablation_inherits(tmp_path):
    text = next(block for block in blocks('python') if 'tau=4.0' in block)
    path = tmp_path / 'ablation.py'
    path.write_text(text.replace("'./configs/", f"'{ROOT}/configs/"))
    losses = Config.fromfile(path).model.losses
    assert losses.loss_kd_cls.tau == 4.0 and losses.loss_kd_cls.student.endswith('fc_cls')
    assert losses.loss_kd_bbox is None


def anchor(title):
    """As GitHub makes it of a heading."""
    return re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')


def test_links_and_code_paths_exist():
    pages = [
        ROOT / 'README.md',
        ROOT / 'benchmarks/README.md',
        *sorted((ROOT / 'docs').glob('*.md')),
    ]
    for page in pages:
        for target in re.findall(r'\]\((?!http)([^)]+)\)', page.read_text()):
            path, _, section = target.partition('#')
            path = page.parent / path if path else page
            assert path.exists(), (page.name, target)
            if section:
                titles = re.findall(r'^#+ (.*)$', path.read_text(), re.M)
                assert section in [anchor(title) for title in titles], (page.name, target)
    for target in re.findall(r'`((?:mmkd|tools|configs|tests)/[\w/.\-]*)`', README):
        assert (ROOT / target).exists() or '_NAME' in target, target
