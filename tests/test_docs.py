"""The examples in the docs run as they stand there."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
from mmdet.registry import HOOKS, TASK_UTILS
from mmengine.registry import VISBACKENDS
from tiny_exports import CONFIGS
from tiny_models import CLASSES, batch, pair_of_detectors
from tiny_training import training_config, write_coco
from torch import nn

from mmkd.families import FAMILIES, family_of
from mmkd.recorder import Recorder, Source

DOCS = Path(__file__).parents[1] / 'docs'


def examples(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r'```python\n(.*?)```', (DOCS / page).read_text(encoding='utf-8'), re.S)


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
    code, config = examples('write_an_alignment.md')
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
    (code,) = examples('write_a_family.md')
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
    for code, declared in zip(examples('figures.md'), (hook, visualizer), strict=True):
        exec(code, declared)
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
    (block,) = re.findall(r'```bash\n(.*?)```', (DOCS / 'deploy.md').read_text(), re.S)
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
    (program,) = examples('deploy.md')
    exec(program, {'IMAGE': 'data/images/0.png'})
    printed = capsys.readouterr().out.splitlines()
    assert printed and all(line.split()[0] in CLASSES for line in printed)


def test_the_page_lists_the_detectors_that_are_exported():
    from mmkd.deploy.detection_graph import SUPPORTED

    text = (DOCS / 'deploy.md').read_text().replace(' ', '').replace('-', '')
    assert all(name in text for name in SUPPORTED)
