"""mmkd/hooks/student_config.py: what was distilled is used without mmkd."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from fault_table import distil, sound_case
from mmengine.config import Config
from mmengine.utils import digit_version
from tiny_training import train

from mmkd.hooks.student_config import student_config

PREDICT = """
import sys
sys.modules['mmkd'] = None  # not installed
import numpy as np
from mmdet.apis import DetInferencer, init_detector, inference_detector
work, image, out = sys.argv[1:]
detector = init_detector(f'{work}/student.py', f'{work}/iter_2.pth', device='cpu')
found = inference_detector(detector, image).pred_instances
np.savez(out, boxes=found.bboxes.numpy(), scores=found.scores.numpy())
for model in (f'{work}/student.py', None):
    inferencer = DetInferencer(model, f'{work}/iter_2.pth', device='cpu', show_progress=False)
    again = inferencer(image, out_dir='')['predictions'][0]
    assert np.allclose(again['scores'], found.scores.numpy()), model
"""


# torch 2.6 and later refuse to read training checkpoints of any detector unless they are told of their types,
# which mmengine does from 0.10.8 on.
READS_ITS_OWN = digit_version(mmengine.__version__) > digit_version('0.10.7') or digit_version(
    torch.__version__
) < digit_version('2.6')


@pytest.mark.skipif(
    not READS_ITS_OWN, reason='mmengine does not read training checkpoints with this torch'
)
def test_it_runs_without_mmkd_and_predicts_what_the_student_does(tmp_path: Path):
    case = sound_case(tmp_path / 'run', 'coco')
    distil()(case)
    work = tmp_path / 'work'
    case.config.work_dir = str(work)
    case.config.default_hooks.checkpoint.interval = 2
    case.config.model.student.test_cfg.rcnn.score_thr = 0.0
    case.config.val_evaluator.type = 'CocoF1Metric'
    for mode in ('val', 'test'):
        steps = case.config[f'{mode}_dataloader'].dataset.pipeline
        case.config[f'{mode}_dataloader'].dataset.pipeline = [
            step for step in steps if step.type != 'RandomFlip'
        ]
    student = train(case.config).model
    image = case.folder / 'data/images/0.png'
    command = [sys.executable, '-c', PREDICT, str(work), str(image), str(tmp_path / 'found.npz')]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = np.load(tmp_path / 'found.npz')
    assert len(found['scores'])
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    student.eval()
    student.cfg = Config.fromfile(str(work / 'student.py'))
    expected = inference_detector(student, str(image)).pred_instances
    # Of the distillation's own config, too, which needs mmkd.
    config = str(next(path for path in work.glob('*.py') if path.name != 'student.py'))
    checkpoint = str(work / 'iter_2.pth')
    distilled = inference_detector(init_detector(config, checkpoint, device='cpu'), str(image))
    assert torch.equal(distilled.pred_instances.bboxes, expected.bboxes)
    inferencer = DetInferencer(config, checkpoint, device='cpu', show_progress=False)
    (again,) = inferencer(str(image), out_dir='')['predictions']
    assert np.allclose(again['scores'], expected.scores.numpy())
    assert np.allclose(found['scores'], expected.scores.numpy())
    assert np.allclose(found['boxes'], expected.bboxes.numpy(), atol=1e-4)
    text = torch.load(work / 'iter_2.pth', weights_only=False)['meta']['cfg']
    assert "'mmkd'" not in text and 'Distiller' not in text and 'CocoF1Metric' not in text


def test_a_student_of_mmkds_own_modules_names_it():
    model = dict(type='Distiller', student=dict(neck=dict(type='SimpleFeaturePyramid')))
    config = Config(dict(model=model, custom_imports=dict(imports=['mmkd', 'mine'])))
    assert student_config(config).custom_imports.imports == ['mmkd', 'mine']
    config.model.student.neck.type = 'FPN'
    assert student_config(config).custom_imports.imports == ['mine']
    assert config.model.type == 'Distiller'  # as it was


def test_weights_of_an_initializer_of_mmkd_come_from_the_checkpoint():
    backbone = dict(type='ResNet', init_cfg=dict(type='ConvertedCheckpoint', checkpoint='x.pth'))
    config = Config(dict(model=dict(type='Distiller', student=dict(backbone=backbone))))
    assert student_config(config).model.backbone == dict(type='ResNet', init_cfg=None)


def test_a_config_of_that_name_is_not_replaced(tmp_path: Path):
    case = sound_case(tmp_path / 'run', 'coco')
    distil()(case)
    case.config.work_dir = str(tmp_path / 'work')
    case.config.dump(str(tmp_path / 'student.py'))
    config = Config.fromfile(str(tmp_path / 'student.py'))
    train(config)
    assert Config.fromfile(str(tmp_path / 'work/student.py')).model.type == 'Distiller'
