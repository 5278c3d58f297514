"""mmkd/hooks/guard.py: checks before the first iteration, and the stop before a NaN."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from fault_table import Case, sound_case, voc_object, xml
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from tiny_models import faster_rcnn
from tiny_training import train

from mmkd.errors import ConfigError, MissingFileError, UserError
from mmkd.hooks import NonFiniteError
from mmkd.preflight import annotations


@MODELS.register_module(force=True)
class FailingL1Loss(torch.nn.Module):
    """An L1 loss that becomes NaN, or has a NaN as gradient, from its fourth call on."""

    def __init__(self, loss_weight: float = 1.0, of_gradient: bool = False) -> None:
        super().__init__()
        self.calls, self.of_gradient = 0, of_gradient

    def forward(self, pred, target, weight=None, avg_factor=None, **_):
        self.calls += 1
        loss = (pred - target).abs().sum() / (avg_factor or 1)
        if self.calls < 4:
            return loss
        if not self.of_gradient:
            return loss * math.nan
        # sqrt has an infinite slope at 0, times 0 is NaN.
        return loss + (pred.sum() * 0).sqrt()


@HOOKS.register_module(force=True)
class DamageImage(Hook):
    """Damages an image when training begins."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def before_train(self, runner) -> None:
        self.damage(self.path)


def guarded(case: Case, **loss: bool):
    """The config of a run whose box loss fails in its fourth step, with the hook that tools add."""
    case.config.work_dir = str(case.folder / 'work')
    case.config.default_hooks = dict(guard=dict(type='GuardHook'))
    case.config.train_cfg.max_iters = 6
    if loss:
        case.config.model.roi_head.bbox_head.loss_bbox = dict(type='FailingL1Loss', **loss)
    return case.config


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return sound_case(tmp_path, 'coco')


@pytest.mark.parametrize(
    ('of_gradient', 'named'), [(False, 'loss_bbox'), (True, 'the gradient of ')]
)
def test_it_stops_before_the_weights_become_nan(case, of_gradient, named):
    config = guarded(case, of_gradient=of_gradient)
    with pytest.raises(NonFiniteError) as error:
        train(config)
    message = str(error.value)
    assert isinstance(error.value, UserError)
    for part in (
        'iteration 4: ',
        named,
        'is NaN or infinite',
        '.png',
        'last_finite.pth',
        'MMKD_NAN',
    ):
        assert part in message
    state = torch.load(case.folder / 'work/last_finite.pth', weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in state.values())
    MODELS.build(faster_rcnn()).load_state_dict(state)


def test_it_goes_on_if_asked_to(case, monkeypatch):
    monkeypatch.setenv('MMKD_NAN', 'warn')
    said = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *_: said.append(str(text)))
    assert train(guarded(case, of_gradient=False)).iter == 6
    assert len([text for text in said if 'loss_bbox' in text]) == 1


def test_nothing_is_changed_where_all_is_finite(case):
    def weights(config):
        config.experiment_name = config.visualizer.name = str(len(config.default_hooks))
        return train(config).model.state_dict()

    with_it = weights(guarded(case))
    plain = guarded(case)
    plain.default_hooks = dict()
    without = weights(plain)
    assert all(torch.equal(value, without[name]) for name, value in with_it.items())


def test_flat_boxes_are_dropped_by_name_and_the_run_stays_finite(tmp_path, monkeypatch):
    case = sound_case(tmp_path, 'voc')
    xml(voc_object('dog'), voc_object('tvmonitor', 20, 30, 20, 60))(case)
    said = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *_: said.append(str(text)))
    runner = train(guarded(case))
    (line,) = [text for text in said if 'not used for training: ' in text]
    assert '1 boxes without an area' in line and '2008_train_0.jpg' in line
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    counts = {
        sample['data_samples'].img_id: len(sample['data_samples'].gt_instances)
        + len(sample['data_samples'].ignored_instances)
        for sample in runner.train_dataloader.dataset
    }
    assert counts == {'2008_train_0': 1, '2008_train_1': 2}


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    ('damage', 'kind', 'expected'),
    [
        (Path.unlink, MissingFileError, 'no such image: '),
        (lambda path: path.write_bytes(b''), ConfigError, 'is empty or cannot be read'),
    ],
    ids=['missing', 'empty'],
)
def test_an_image_that_fails_later_is_named(case, damage, kind, expected, workers):
    """The image is valid when the run is checked."""
    config = guarded(case)
    config.train_dataloader.num_workers = workers
    config.default_hooks.damage = dict(
        type='DamageImage', path=str(case.folder / 'data/images/2.png')
    )
    DamageImage.damage = staticmethod(damage)
    with pytest.raises(kind) as error:
        train(config)
    assert expected in str(error.value) and '2.png' in str(error.value)


@pytest.mark.parametrize('large', [False, True])
def test_the_check_is_run_without_the_tools(case, monkeypatch, large):
    """The run has read a large file itself; the check reads only its categories."""
    if large:
        monkeypatch.setattr(annotations, 'LARGE_FILE', 10)
    path = case.folder / 'data/annotations.json'
    content = json.loads(path.read_text())
    content['categories'].reverse()
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match='the order is'):
        train(guarded(case))
