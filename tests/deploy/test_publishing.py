"""A published student is run by mmdet alone, and its card names where it comes from."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import CLASSES

from mmkd.checkpoints import hash_mismatch, sha256_of

PREDICT = """
import sys
sys.modules['mmkd'] = None  # not installed
from mmdet.apis import DetInferencer
config, weights, image = sys.argv[1:]
found = DetInferencer(config, weights, device='cpu', show_progress=False)(image)['predictions'][0]
assert len(found['scores'])
"""


def test_the_folder_is_run_by_mmdet_alone(trained, tool, tmp_path, capsys):
    config, checkpoint = trained / 'config.py', trained / 'work/iter_2.pth'
    options = ('--out', 'public', '--name', 'tiny', '--license', 'Apache-2.0', '--device', 'cpu')
    assert tool('publish', config, checkpoint, *options) == 0
    out = tmp_path / 'public'
    (weights,) = out.glob('*.pth')
    assert {path.name for path in out.iterdir()} == {
        *('README.md', 'tiny.py', weights.name, weights.with_suffix('.safetensors').name)
    }
    assert str(weights.name) in capsys.readouterr().out
    # The name has the hash of the content.
    assert weights.stem == f'tiny-{sha256_of(weights)[:8]}' and hash_mismatch(str(weights)) is None
    content = torch.load(weights, weights_only=True)
    before = torch.load(checkpoint, weights_only=False)
    assert set(content) == {'state_dict', 'meta', 'message_hub'}
    assert content['state_dict'].keys() == before['state_dict'].keys()
    safe = load_file(weights.with_suffix('.safetensors'))
    for key, value in before['state_dict'].items():
        assert torch.equal(content['state_dict'][key], value) and torch.equal(safe[key], value)
    with safe_open(weights.with_suffix('.safetensors'), 'pt') as file:
        assert json.loads(file.metadata()['classes']) == list(CLASSES)
    image = trained / 'data/images/0.png'
    command = [sys.executable, '-c', PREDICT, str(out / 'tiny.py'), str(weights), str(image)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


def test_the_card_names_data_teacher_recipe_and_scores(trained, tool, tmp_path):
    given = (trained / 'config.py', trained / 'work/iter_2.pth', '--out', 'public')
    assert tool('publish', *given, '--license', 'MIT', '--device', 'cpu') == 0
    card = (tmp_path / 'public/README.md').read_text()
    digest = sha256_of(trained / 'teacher.pth')
    for part in (
        'license: MIT',
        ', '.join(CLASSES),
        '- train: CocoDataset, annotations.json',
        f'| teacher | teacher.py | teacher.pth | {digest} |',
        '| loss_kd | KLDivergence | 1 | RoIClassAlignment |',
        '| mAP | ',
        '| seed | 7 |',
    ):
        assert part in card
    # The hashes of the files are those of the files.
    for path in (tmp_path / 'public').iterdir():
        if path.name != 'README.md':
            assert f'| {path.name} | {sha256_of(path)} |' in card


def test_without_a_log_beside_it_no_score_is_given(trained, tool, tmp_path, capsys):
    (tmp_path / 'moved.pth').write_bytes((trained / 'work/iter_2.pth').read_bytes())
    given = (trained / 'config.py', 'moved.pth', '--out', 'public', '--device', 'cpu')
    assert tool('publish', *given) == 0
    card = (tmp_path / 'public/README.md').read_text()
    assert (
        'Not known: the folder of the checkpoint has no validation log' in card
        and '| mAP |' not in card
        and 'license: unknown' in card
    )
    assert 'warning: --license: not given' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda given: given | {'--out': 'full'}, '--out: full must be a new or an empty folder'),
        (lambda given: given | {'checkpoint': 'none.pth'}, 'checkpoint none.pth does not exist'),
        (lambda given: given | {'checkpoint': 'other.pth'}, 'does not belong to this FasterRCNN'),
        (
            lambda given: given | {'--name': 'a/b'},
            "--name: must be a file name without folder, got 'a/b'",
        ),
    ],
    ids=['a folder with files', 'no checkpoint', 'of another detector', 'a name with a folder'],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    trained, tool, tmp_path, capsys, change, says
):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/file').touch()
    torch.save(dict(state_dict={'a.weight': torch.zeros(2)}), tmp_path / 'other.pth')
    given = change(
        {'checkpoint': str(trained / 'work/iter_2.pth'), '--out': 'public', '--name': 'tiny'}
    )
    there = sorted(tmp_path.rglob('*'))
    checkpoint = given.pop('checkpoint')
    options = [word for pair in given.items() for word in pair]
    assert tool('publish', trained / 'config.py', checkpoint, *options, '--device', 'cpu') == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith('mmkd: error: ')]
    assert says in line
    assert sorted(tmp_path.rglob('*')) == there


def test_a_plain_detector_is_published_too(trained, tool, tmp_path):
    config = Config.fromfile(str(trained / 'config.py'))
    config.model = config.model.student
    config.dump(str(tmp_path / 'plain.py'))
    given = ('plain.py', trained / 'work/iter_2.pth', '--out', 'public', '--device', 'cpu')
    assert tool('publish', *given) == 0
    card = (tmp_path / 'public/README.md').read_text()
    assert '## Distillation' not in card
    assert Config.fromfile(str(tmp_path / 'public/plain.py')).model.type == 'FasterRCNN'
