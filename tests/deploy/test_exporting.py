"""tools/export.py: what it writes, what it compares and what it refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from real_files import real
from tiny_exports import spread_detector
from tiny_models import CLASSES, mask_rcnn, save_teacher
from tiny_training import training_config, write_coco

from mmkd.checkpoints import sha256_of

CPU = ('--device', 'cpu', '--rounds', 1)
SIZE = ('--size', 96, 128)


def packages():
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(name)


def save(folder: Path, kind: str = 'YOLOX') -> tuple[Path, Path]:
    """A plain detector's config with data, and a checkpoint."""
    from tiny_exports import CONFIGS

    data = write_coco(folder / 'data', images=3)
    config = training_config(CONFIGS[kind](), data, folder / 'work')
    resize = dict(type='Resize', scale=(128, 96), keep_ratio=True)
    steps = [dict(type='LoadImageFromFile'), resize, dict(type='PackDetInputs')]
    steps[-1]['meta_keys'] = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    config.test_dataloader.dataset.pipeline = steps
    config.dump(str(folder / 'config.py'))
    meta = dict(dataset_meta=dict(classes=CLASSES))
    state = spread_detector(kind).state_dict()
    torch.save(dict(state_dict=state, meta=meta), folder / 'weights.pth')
    return folder / 'config.py', folder / 'weights.pth'


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp('saved'))


def test_the_folder_is_described_and_runs(saved, tool, tmp_path, capsys):
    packages()
    import onnxruntime

    assert tool('export', *saved, '--out', 'out', *SIZE, *CPU) == 0
    out = tmp_path / 'out'
    assert {path.name for path in out.iterdir()} == {'model.onnx', 'model.json', 'student.py'}
    assert out.stat().st_mode & 0o777 == 0o755
    about = json.loads((out / 'model.json').read_text())
    assert about['sha256'] == sha256_of(out / 'model.onnx')
    assert about['classes'] == list(CLASSES) and about['detector'] == 'YOLOX'
    given = about['input']
    assert (given['dtype'], given['layout'], given['channels']) == ('uint8', 'NHWC', 'BGR')
    assert (given['batch'], given['height'], given['width']) == (1, 96, 128)
    assert [each['type'] for each in given['before']] == ['Resize']
    assert about['agreement']['boxes'] > 0 and about['agreement']['different'] == 0
    assert about['agreement']['checked_on'] == '3 images of the test data'
    assert set(about['latency']['ms']['student']) >= {'PyTorch', 'ONNX Runtime'}
    printed = capsys.readouterr().out
    assert 'boxes agree with PyTorch on 3 images of the test data' in printed
    assert 'images: batch fixed to 1, height fixed to 96, width fixed to 128' in printed
    assert '| student |' in printed and '1 threads' in printed
    # As its user runs it, with nothing of mmkd.
    session = onnxruntime.InferenceSession(str(out / 'model.onnx'))
    image = mmcv.imread(str(saved[0].parent / 'data/images/0.png'))
    dets, labels, counts = session.run(None, {'images': image[None]})
    found = dets[0, : counts[0]]
    assert counts[0] and set(labels[0, : counts[0]].tolist()) <= {0, 1, 2}
    assert (np.diff(found[:, 4]) <= 0).all() and (found[:, 4] > 0).all()
    assert Config.fromfile(str(out / 'student.py')).model.type == 'YOLOX'


def test_a_distilled_student_beside_its_teacher(trained, tool, tmp_path, capsys):
    packages()
    given = (trained / 'config.py', trained / 'work/iter_2.pth', '--out', 'out')
    images = ('--images', trained / 'data/images')
    assert tool('export', *given, *images, '--teacher', *SIZE, *CPU) == 0
    printed = capsys.readouterr().out
    assert 'on 4 images' in printed
    about = json.loads((tmp_path / 'out/model.json').read_text())
    assert about['input']['inside']['channels'] == 'RGB'
    assert about['input']['inside']['mean'] == pytest.approx([123.675, 116.28, 103.53])
    assert set(about['latency']['ms']) == {'student', 'teacher'}
    plain = Config.fromfile(str(tmp_path / 'out/student.py'))
    assert plain.model.type == 'FasterRCNN' and 'custom_imports' not in plain


def test_it_is_not_written_if_the_boxes_differ(saved, tool, tmp_path, capsys, monkeypatch):
    packages()
    from mmkd.deploy import exporting

    def other(graph, path, size):
        """The file of a detector with other weights."""
        for parameter in graph.detector.bbox_head.parameters():
            parameter.neg_()
        found = write(graph, path, size)
        for parameter in graph.detector.bbox_head.parameters():
            parameter.neg_()
        return found

    write = exporting.write_onnx
    monkeypatch.setattr(exporting, 'write_onnx', other)
    assert tool('export', *saved, '--out', 'out', *SIZE, *CPU) == 2
    (line,) = [it for it in capsys.readouterr().err.splitlines() if 'mmkd: error' in it]
    assert 'export: on image 1 of 3, ' in line and 'nothing is written' in line
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_line(saved, tool, tmp_path, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        'find_spec',
        lambda name, *more: None if name == 'onnxruntime' else real(name, *more),
    )
    assert tool('export', *saved, '--out', 'out', *CPU) == 2
    said = capsys.readouterr().err
    assert 'onnxruntime; install with `pip install onnx onnxscript onnxruntime`' in said
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (lambda given: {'--out': 'full'}, '--out: full must be a new or an empty folder'),
        (lambda given: {'--out': 'full/file/out'}, '--out: full/file/out cannot be written'),
        (lambda given: {'checkpoint': 'none.pth'}, 'checkpoint none.pth does not exist'),
        (lambda given: {'checkpoint': 'other.pth'}, 'does not belong to this YOLOX'),
        (lambda given: {'--images': 'nowhere.png'}, 'no such file or folder: nowhere.png'),
        (lambda given: {'--images': 'broken.png'}, '--images: broken.png cannot be read'),
        (lambda given: {'--rounds': 0}, '--rounds: must be at least 1, got 0'),
        (lambda given: {'--teacher': None}, '--teacher: needs the config of a distillation'),
        (lambda given: {'--evaluate': None, **given}, '--evaluate: cannot be combined with --size'),
        (lambda given: {'config': 'masks.py', 'checkpoint': 'masks.pth'}, 'MaskRCNN cannot be'),
        (
            lambda given: {'config': 'tta.py'},
            'has TestTimeAug, but test-time augmentation cannot be',
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    saved, tool, tmp_path, capsys, arguments, says
):
    packages()
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/file').touch()
    (tmp_path / 'broken.png').write_bytes(b'no image')
    torch.save(dict(state_dict={'a.weight': torch.zeros(2)}), tmp_path / 'other.pth')
    save_teacher(tmp_path / 'masks.pth', mask_rcnn())
    Config(dict(model=mask_rcnn())).dump(str(tmp_path / 'masks.py'))
    config = Config.fromfile(str(saved[0]))
    steps = config.test_dataloader.dataset.pipeline
    config.test_dataloader.dataset.pipeline = [steps[0], dict(type='TestTimeAug', transforms=[])]
    config.dump(str(tmp_path / 'tta.py'))
    there = sorted(tmp_path.rglob('*'))
    given = {'config': saved[0], 'checkpoint': saved[1], '--out': 'out', '--rounds': 1}
    given |= arguments({'--size': (96, 128)})
    positional = (given.pop('config'), given.pop('checkpoint'))
    size = given.pop('--size', ())
    options = [word for pair in given.items() for word in pair if word is not None]
    options += ['--size', *size] if size else []
    assert tool('export', *positional, *options, '--device', 'cpu') == 2
    lines = [it for it in capsys.readouterr().err.splitlines() if it.startswith('mmkd: error')]
    assert len(lines) == 1 and says in lines[0]
    assert sorted(tmp_path.rglob('*')) == there


def test_a_real_detector_keeps_its_map(tool, tmp_path, capsys):
    """YOLOX-nano on photographs of COCO."""
    packages()
    weights, data = real('MMKD_WEIGHTS', 'yolox_nano_coco_mmdet.pth'), real('MMKD_COCO')
    few = ('test_dataloader.dataset.indices=16', f'data_root={data}/')
    config = 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py'
    options = ('--evaluate', '--cfg-options', *few)
    assert tool('export', config, weights, '--out', tmp_path / 'out', *CPU, *options) == 0
    assert 'boxes agree with PyTorch on 4 images of the test data' in capsys.readouterr().out
    about = json.loads((tmp_path / 'out/model.json').read_text())
    assert about['mAP']['ONNX Runtime'] == pytest.approx(about['mAP']['PyTorch'], abs=1e-3)
    assert about['mAP']['PyTorch'] > 0
    assert len(about['classes']) == 80
