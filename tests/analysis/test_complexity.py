"""Parameters and multiply-adds against a count by hand, and the measuring of a whole detector."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

from _synthetic_scenes import SceneSettings, prepare_scenes
from mmkd.analysis.complexity import (
    build_test_data,
    count_flops,
    count_parameters,
    load_detector,
    measure,
    time_in_turns,
)
from mmkd.errors import CheckpointError, MissingFileError
from mmkd.models import VisionTransformer

CONFIG = 'configs/demo/faster-rcnn_mobilenetv2_fpn.py'


@pytest.fixture(scope='module')
def cfg(tmp_path_factory):
    from pathlib import Path

    root = tmp_path_factory.mktemp('data') / 'drawn'
    prepare_scenes(root, SceneSettings(train=1, val=3))
    cfg = Config.fromfile(str(Path(__file__).parents[2] / CONFIG))
    cfg.test_dataloader.dataset.data_root = f'{root}/'
    return cfg


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 5, bias=False)

    def forward(self, images, scale=1):
        return self.fc(self.conv(images).mean((2, 3))) * scale


def test_counts_by_hand():
    model = TwoLayers()
    images = torch.zeros(1, 3, 16, 12)
    assert count_parameters(model) == (3 * 3 * 3 * 8 + 8) + 8 * 5
    # 8 x 6 places of the convolution, then one row of the matrix; biases are additions only.
    assert count_flops(model, images) == 8 * 6 * (3 * 3 * 3) * 8 + 8 * 5


def test_grouped_convolution_costs_its_groups_share():
    images = torch.zeros(1, 8, 10, 10)
    whole = count_flops(nn.Conv2d(8, 8, 3, padding=1, bias=False), images)
    depthwise = count_flops(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), images)
    assert whole == 8 * depthwise == 10 * 10 * 9 * 8 * 8


@pytest.mark.parametrize('relative', [False, True])
def test_attention_counts(relative):
    dims, layers, places = 32, 2, (64 // 16) * (96 // 16)
    model = VisionTransformer(
        dict(embed_dims=dims, num_layers=layers, num_heads=4),
        img_size=64,
        class_token=False,
        final_norm=False,
        rel_pos_grid=4 if relative else None,
    )
    embedding = places * 16 * 16 * 3 * dims
    linear = places * dims * (3 * dims + dims + 4 * dims + 4 * dims)
    attention = 2 * places * places * dims
    # Of each query with the rows and with the columns of the grid.
    distances = places * dims * (4 + 6) if relative else 0
    norms = 2 * 5 * places * dims  # mmengine counts five operations a number for a normalisation
    wanted = embedding + layers * (linear + attention + distances + norms)
    assert count_flops(model, torch.zeros(1, 3, 64, 96)) == wanted


def test_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 16 + 4 + 4


def test_counting_leaves_the_model_as_it_was():
    model = TwoLayers().train()
    count_flops(model, torch.zeros(1, 3, 8, 8), scale=2)
    assert model.training
    assert 'forward' not in vars(model)
    assert model(torch.zeros(1, 3, 8, 8)).requires_grad


def test_measures_a_detector(cfg):
    model = load_detector(cfg, None, device='cpu')
    cost = measure(model, build_test_data(cfg), images=2, warm_up=1)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert sorted(cost.input_size) == [128, 160]
    assert cost.ms_per_image > 0
    # The first convolution alone: 3x3x3 -> 16 channels at half the size.
    assert cost.flops > 64 * 80 * 27 * 16
    assert not model.training


def test_each_detector_has_its_turn_in_each_round():
    class Listed(nn.Module):
        def test_step(self, batch):
            order.append(batch)

    order = []
    times = time_in_turns([Listed(), Listed()], ['a', 'b'], rounds=3, warm_up=1)
    assert ''.join(order) == 'abbaabba'
    assert len(times) == 2 and min(times) > 0


def test_loads_a_checkpoint_strictly(cfg, tmp_path):
    model = load_detector(cfg, None, device='cpu')
    state = model.state_dict()
    torch.save({'state_dict': state}, tmp_path / 'whole.pth')
    loaded = load_detector(cfg, str(tmp_path / 'whole.pth'), device='cpu')
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in state.items())

    key = 'roi_head.bbox_head.fc_cls.weight'
    torch.save({'state_dict': {k: v for k, v in state.items() if k != key}}, tmp_path / 'part.pth')
    with pytest.raises(CheckpointError, match=key):
        load_detector(cfg, str(tmp_path / 'part.pth'), device='cpu')
    with pytest.raises(MissingFileError, match='absent.pth'):
        load_detector(cfg, str(tmp_path / 'absent.pth'), device='cpu')


def test_test_data_is_that_of_the_config(cfg):
    dataset = build_test_data(cfg)
    assert len(dataset) == 3
    with Image.open(dataset.get_data_info(0)['img_path']) as image:
        shape = np.asarray(image).shape
    assert shape[:2] == dataset[0]['data_samples'].ori_shape
