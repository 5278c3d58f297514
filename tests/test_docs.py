"""Commands, configs and links of README and docs are those that work."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import HOOKS, TASK_UTILS
from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from tiny_exports import CONFIGS
from tiny_models import CLASSES, batch, pair_of_detectors
from tiny_training import training_config, write_coco
from torch import nn

from mmkd.__main__ import tools
from mmkd.distillers import LossEntry
from mmkd.families import FAMILIES, family_of
from mmkd.recorder import Recorder, Source

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding='utf-8')
    for path in (
        *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'benchmarks/README.md')),
        *sorted(DOCS.rglob('*.md')),
    )
}
# Programs of others, shown as they start a tool of mmkd.
LAUNCHERS = ('torchrun', 'mpirun', 'srun')
OTHERS = ('tensorboard', 'docker')


def blocks(language: str, page: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf'^```{language}\n(.*?)^```', page, re.S | re.M)


def commands(page: str) -> list[str]:
    """The commands of a page: those in blocks, and those in a sentence that have arguments."""
    shown = [line for block in blocks('bash', page) for line in block.splitlines() if line.strip()]
    prose = re.sub(r'^```.*?^```', '', page, flags=re.S | re.M)
    for text in re.findall(r'`((?:mim|make|python|tools/dist_)\s[^`]*)`', prose):
        words = text.split()
        if '…' not in text and len(words) > (2 if words[0] in ('mim', 'make') else 3):
            shown.append(' '.join(words))
    return shown


COMMANDS = {
    command: name
    for name, page in PAGES.items()
    if name != 'docs/reference/checks.md'  # made from faults, with the commands of their messages
    for command in commands(page)
}


def parse(tool: str, arguments: list[str], monkeypatch):
    """The tool's own parser on these arguments; exits on an option it does not have."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    spec = importlib.util.spec_from_file_location(f'tool_{tool}', tools()[tool])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    return module.parse_args()


def check_tool(tool: str, rest: list[str], monkeypatch) -> None:
    """A tool that exists, called with options that it has, on a config that exists."""
    if tool == 'TOOL' or not rest:
        return
    if '-C' in rest:  # mim's way to give the checkpoint, which is the tool's second argument
        rest.remove('-C')
    if rest == ['-h']:
        with pytest.raises(SystemExit, match='0'):
            parse(tool, rest, monkeypatch)
        return
    args = parse(tool, rest, monkeypatch)
    config = getattr(args, 'config', None)
    if config and config.startswith('configs/'):
        assert (ROOT / config).is_file(), config


@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_names_what_exists(command, monkeypatch):
    words = shlex.split(command, comments=True)
    if words[0] in LAUNCHERS:
        words = ['python', *words[words.index('tools/train.py') :]]
    if words[0] in OTHERS:
        return
    if words[0] == 'make':
        assert words[1] in re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M)
    elif words[:2] == ['pip', 'install']:
        constraints = (ROOT / 'requirements/constraints.txt').read_text()
        pinned = re.search(r'^torch==.*$', constraints, re.M)[0]
        extras = re.findall(r'^(\w+) = \[', (ROOT / 'pyproject.toml').read_text(), re.M)
        for word in words[2:]:
            if word.startswith('.['):
                assert set(word[2:-1].split(',')) <= set(extras)
            else:
                assert word.startswith('-') or word in ('.', pinned, 'setuptools', 'wheel')
    elif words[0] in ('tools/dist_train.sh', 'tools/dist_test.sh'):
        assert (ROOT / words[0]).stat().st_mode & 0o100
    elif words[:2] == ['mim', 'install']:
        return
    elif words[0] == 'mim':
        assert words[2] == 'mmkd'
        tool, rest = (words[3], words[4:]) if words[1] == 'run' else (words[1], words[3:])
        check_tool(tool, rest, monkeypatch)
    elif words[:3] == ['python', '-m', 'mmkd']:
        if len(words) > 4:
            check_tool(words[3], words[4:], monkeypatch)
        elif len(words) == 4:
            assert words[3] in {*tools(), 'TOOL'}
    elif words[0] == 'python' and words[1].startswith('tools/'):
        check_tool(Path(words[1]).stem, words[2:], monkeypatch)
    elif words[0] == 'python' and words[1].startswith('benchmarks/'):
        program = (ROOT / words[1]).read_text() + (ROOT / 'tools/_cli.py').read_text()
        program += (ROOT / 'tools/benchmark.py').read_text()
        for option in (word for word in words if word.startswith('--')):
            assert repr(option) in program, option
        if words[1] == 'benchmarks/run.py' and words[2] != 'STUDY':
            assert (ROOT / f'benchmarks/studies/{words[2]}.py').is_file()
    else:
        pytest.fail(f'{COMMANDS[command]}: a command nobody tests: {command}')


def test_every_shipped_config_is_on_a_page():
    named = {word for line in COMMANDS for word in line.split() if word.startswith('configs/')}
    named = {n for n in named if not n.startswith(('configs/demo/', 'configs/methods/'))}
    base, names = re.search(
        r'`(configs/ablations/\S*_)NAME.py`:\n\n(.*?)\n\n', PAGES['docs/recipes/coco_detr.md'], re.S
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
    assert named | listed == shipped


CONFIG_BLOCKS = [
    pytest.param(block, id=f'{name}-{number}')
    for name, page in PAGES.items()
    for number, block in enumerate(blocks('python', page))
    if 'losses=dict(' in block or block.startswith('losses = dict(')
]


@pytest.mark.parametrize('block', CONFIG_BLOCKS)
def test_each_loss_of_a_page_can_be_built(block):
    declared: dict = {}
    if '_base_' in block:
        block = re.sub(r'^_base_ = .*$', '', block, flags=re.M).replace('{{_base_.model}}', '{}')
    exec(block, declared)
    losses = declared.get('losses') or declared['model']['losses']
    complete = {name: entry for name, entry in losses.items() if entry and 'type' in entry}
    assert complete or 'tau=4.0' in block  # the ablation changes entries of its base
    for name, entry in complete.items():
        if not {entry['type'], entry.get('align')} & {'LogCosh', 'FirstLevelAlignment'}:
            LossEntry(name, entry)  # those two are written by their page


def test_the_ablation_inherits(tmp_path):
    (text,) = blocks('python', PAGES['docs/how_to/ablations.md'])
    path = tmp_path / 'ablation.py'
    path.write_text(text.replace("'./configs/", f"'{ROOT}/configs/"))
    losses = Config.fromfile(path).model.losses
    assert losses.loss_kd_cls.tau == 4.0 and losses.loss_kd_cls.student.endswith('fc_cls')
    assert losses.loss_kd_bbox is None


def anchor(title: str) -> str:
    """As GitHub and the site make it of a heading."""
    return re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')


@pytest.mark.parametrize('name', PAGES)
def test_links_and_code_paths_exist(name):
    page = ROOT / name
    for target in re.findall(r'\]\((?!http)([^)]+)\)', PAGES[name]):
        path, _, section = target.partition('#')
        path = page.parent / path if path else page
        assert path.exists(), target
        if section:
            titles = re.findall(r'^#+ (.*)$', path.read_text(), re.M)
            assert section in [anchor(title) for title in titles], target
    for target in re.findall(r'`((?:mmkd|tools|configs|tests|benchmarks)/[\w/.\-]*)`', PAGES[name]):
        assert (ROOT / target).exists() or '_NAME' in target, target


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r'[\w/]+\.md', (ROOT / 'mkdocs.yml').read_text()))
    assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob('*.md')}


def examples(page: str) -> list[str]:
    """The Python blocks of a page."""
    return blocks('python', PAGES[f'docs/{page}'])


@pytest.fixture
def unregistered():
    """Takes away afterwards what an example registers."""
    before, families = dict(TASK_UTILS.module_dict), list(FAMILIES)
    yield
    for name in TASK_UTILS.module_dict.keys() - before.keys():
        TASK_UTILS.module_dict.pop(name)
    FAMILIES[:] = families


@pytest.mark.usefixtures('unregistered')
def test_the_alignment_of_the_page_is_trained_with_the_entry_beside_it(tmp_path):
    code, config = examples('extend/write_an_alignment.md')
    exec(code, {'__name__': 'example'})
    declared: dict = {}
    exec(config, declared)
    distiller = pair_of_detectors(tmp_path, declared['model']['losses'])
    data = distiller.data_preprocessor(batch(), True)
    loss = distiller.train()(**data, mode='loss')['loss_kd']
    with torch.no_grad():
        levels = [
            model.extract_feat(data['inputs'])[0]
            for model in (distiller.student, distiller.teacher.detector)
        ]
    assert loss.item() == pytest.approx((levels[0] - levels[1]).square().mean().item(), rel=0.2)
    loss.backward()
    assert distiller.neck.lateral_convs[0].conv.weight.grad.any()


class WithHead(nn.Module):
    """A detector of no kind that mmkd knows."""

    def __init__(self):
        super().__init__()
        self.neck, self.my_head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def extract_feat(self, inputs):
        return self.neck(inputs)


@pytest.mark.usefixtures('unregistered')
def test_the_family_of_the_page_runs_its_head_only_where_it_is_read():
    (code,) = examples('extend/write_a_family.md')
    exec(code, {'__name__': 'example'})
    detector = WithHead()
    family = family_of(detector)
    assert type(family).__name__ == 'OneHead'
    head, neck = Source('my_head'), Source('neck')
    for source, ran in ((head, [True, True]), (neck, [True, False])):
        with Recorder(detector, [neck, head]) as seen:
            family.run(torch.rand(1, 3, 8, 8), [], {family.part_of(source)}, seen)
        assert [each in seen for each in (neck, head)] == ran


def test_the_hook_and_the_backends_of_the_page_are_there_with_these_arguments():
    hook, visualizer = ({}, {})
    (of_hook,), (of_visualizer,) = examples('how_to/compare_runs.md'), examples('how_to/logging.md')
    exec(of_hook, hook)
    exec(of_visualizer, visualizer)
    assert HOOKS.build(hook['default_hooks']['comparison']).images == 4
    for backend in visualizer['visualizer']['vis_backends']:
        arguments = {key: value for key, value in backend.items() if key != 'type'}
        inspect.signature(VISBACKENDS.get(backend['type'])).bind(save_dir='work_dirs', **arguments)


def test_the_way_from_a_config_to_onnx_is_as_the_page_has_it(tool, tmp_path, capsys):
    """All commands, and the program that uses the file."""
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)
    data = write_coco(tmp_path / 'data', images=4)
    config = training_config(CONFIGS['RetinaNet'](), data, tmp_path / 'work', iters=2)
    config.model.test_cfg.score_thr = 0.0
    config.dump(str(tmp_path / 'config.py'))
    named = {'CONFIG': 'config.py', 'CHECKPOINT': 'work/iter_2.pth'}
    (block,) = blocks('bash', PAGES['docs/how_to/export.md'])
    lines = [shlex.split(line) for line in block.splitlines()]
    assert lines.pop(0) == ['pip', 'install', '.[export]']
    assert [line[:3] for line in lines] == [['python', '-m', 'mmkd']] * 4
    for _, _, _, name, *arguments in lines:
        options = ('--rounds', '1') if name == 'export' else ()
        given = [named.get(word, word) for word in arguments]
        assert tool(name, *given, '--device', 'cpu', *options) == 0
    assert (tmp_path / 'public/config.py').is_file()
    assert {path.name for path in (tmp_path / 'onnx').iterdir()} == {
        *('model.onnx', 'model.json', 'student.py')
    }
    assert 'images: batch from 1, height from ' in capsys.readouterr().out
    (program,) = examples('how_to/export.md')
    exec(program, {'IMAGE': 'data/images/0.png'})
    printed = capsys.readouterr().out.splitlines()
    assert printed and all(line.split()[0] in CLASSES for line in printed)


def test_the_page_lists_the_detectors_that_are_exported():
    from mmkd.deploy.detection_graph import SUPPORTED

    text = PAGES['docs/how_to/export.md'].replace(' ', '').replace('-', '')
    assert all(name in text for name in SUPPORTED)
