"""A config names a published file, and the model starts with it, or says why not."""

from __future__ import annotations

import pickle

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import WEIGHT_INITIALIZERS
from original_vits import ARCH, WIDTH, OriginalViT, OriginalViTDet, original_mobilenet_v2
from torch import nn

from mmkd.converters import convert
from mmkd.errors import CheckpointError, ConfigError, MissingFileError
from mmkd.preflight import PlannedRun, require

VITDET = dict(
    class_token=False, final_norm=False, window_size=2, global_layers=(2,), rel_pos_grid=5
)


def vit(source: str, path, **options):
    init_cfg = dict(type='ConvertedCheckpoint', source=source, checkpoint=str(path))
    options = dict(arch=ARCH, img_size=20, patch_size=4, init_cfg=init_cfg) | options
    return MODELS.build(dict(type='VisionTransformer', **options))


@pytest.fixture
def mae(tmp_path):
    path = tmp_path / 'mae.pth'
    torch.save(dict(model=OriginalViT(5, 4).state_dict()), path)
    return path


@pytest.fixture
def vitdet(tmp_path):
    path = tmp_path / 'vitdet.pkl'
    state = OriginalViTDet(5, 4, window=2).state_dict()
    path.write_bytes(pickle.dumps(dict(model={key: state[key].numpy() for key in state})))
    return path


def published(path) -> dict:
    return torch.load(path, weights_only=True)


def test_a_backbone_starts_with_all_of_the_file(mae, caplog):
    model = vit('mae', mae)
    logger = MMLogger.get_current_instance()
    logger.setLevel('INFO')
    logger.addHandler(caplog.handler)  # it is no child of the root logger
    model.init_weights()
    logger.removeHandler(caplog.handler)
    wanted = convert('mae', published(mae))
    own = model.state_dict()
    assert own.keys() == wanted.keys()
    assert all(own[key].equal(wanted[key]) for key in own)
    assert f'{len(own)} of {len(own)} entries from the mae weights {mae}' in caplog.text


def test_inside_a_detector_it_is_the_backbones_own(mae):
    model = BaseModule(init_cfg=dict(type='Normal', layer='Linear', std=9.0))
    model.backbone = vit('mae', mae)
    model.init_weights()
    wanted = convert('mae', published(mae))
    assert all(model.backbone.state_dict()[key].equal(wanted[key]) for key in wanted)


def test_what_may_differ(mae):
    model = vit('mae', mae, img_size=24, **VITDET)
    model.layers[0].attn.rel_pos_h.data.fill_(3.0)
    model.init_weights()
    wanted = convert('mae', published(mae), class_token=False)
    own = model.state_dict()
    assert own.keys() - wanted.keys() == {
        f'layers.{i}.attn.rel_pos_{side}' for i in range(3) for side in 'hw'
    }
    assert (own['layers.0.attn.rel_pos_h'] == 3).all()
    assert wanted.keys() - own.keys() == {'ln1.weight', 'ln1.bias'}
    assert own['pos_embed'].shape == (1, 36, WIDTH)
    same = [key for key in own if key in wanted and key != 'pos_embed']
    assert len(same) == 38
    assert all(own[key].equal(wanted[key]) for key in same)


def test_positions_are_those_of_the_patches(mae):
    model = vit('mae', mae, class_token=False)
    model.init_weights()
    assert model.pos_embed.equal(published(mae)['model']['pos_embed'][:, 1:])


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(num_registers=2), '1 missing: register_tokens'),
        (dict(layer_scale=1.0), '6 missing: layers.0.attn.gamma1.weight'),
        (dict(arch=ARCH | dict(num_layers=4)), '12 missing: layers.3.ln1.weight'),
        (dict(arch=ARCH | dict(num_layers=2)), '12 unexpected: layers.2.ln1.weight'),
        (
            dict(patch_size=5),
            r'patch_embed.projection.weight is \(16, 3, 4, 4\) in the file and \(16, 3, 5, 5\) in',
        ),
    ],
)
def test_nothing_else_may_differ(mae, options, message):
    with pytest.raises(CheckpointError, match=message) as error:
        vit('mae', mae, **options).init_weights()
    assert str(error.value).startswith(f'{mae} (init_cfg.checkpoint) does not belong')


def test_a_detector_starts_with_backbone_and_neck(vitdet):
    init_cfg = dict(type='ConvertedCheckpoint', source='vitdet', checkpoint=str(vitdet))
    model = BaseModule(init_cfg)
    model.backbone = vit('unused', '', init_cfg=None, **VITDET)
    model.neck = MODELS.build(
        dict(
            type='SimpleFeaturePyramid',
            in_channels=WIDTH,
            out_channels=8,
            in_stride=4,
            strides=(1, 2, 4, 8),
            init_cfg=dict(type='Xavier', layer='Conv2d'),
        )
    )
    model.rpn_head = BaseModule(init_cfg=dict(type='Constant', layer='Conv2d', val=2.0))
    model.rpn_head.conv = nn.Conv2d(8, 1, 1)
    model.init_weights()
    wanted = convert('vitdet', as_tensors(vitdet))
    own = model.state_dict()
    assert own.keys() - wanted.keys() == {'rpn_head.conv.weight', 'rpn_head.conv.bias'}
    assert all(own[key].equal(wanted[key]) for key in wanted)
    assert (own['rpn_head.conv.weight'] == 2).all()

    backbone = vit('vitdet', vitdet, **VITDET)
    backbone.init_weights()
    assert all(value.equal(own[f'backbone.{key}']) for key, value in backbone.state_dict().items())

    del model.neck
    model.is_init = False
    with pytest.raises(CheckpointError, match='unexpected: neck'):
        model.init_weights()


def as_tensors(path) -> dict:
    model = pickle.loads(path.read_bytes())['model']
    return {key: torch.from_numpy(value) for key, value in model.items()}


def test_relative_positions_of_vitdet_are_not_optional(vitdet, tmp_path):
    state = {key: value for key, value in as_tensors(vitdet).items() if 'rel_pos' not in key}
    torch.save(dict(model=state), tmp_path / 'without.pth')
    with pytest.raises(CheckpointError, match='6 missing: layers.0.attn.rel_pos_h'):
        vit('vitdet', tmp_path / 'without.pth', **VITDET).init_weights()


def test_mmdets_mobilenet_v2(tmp_path):
    path = tmp_path / 'mobilenet.pth'
    original = original_mobilenet_v2(0.25).state_dict()
    counters = [key for key in original if key.endswith('num_batches_tracked')]
    assert counters
    for key in counters:  # files of old torch have none
        del original[key]
    torch.save(original, path)
    init_cfg = dict(
        type='ConvertedCheckpoint', source='torchvision-mobilenetv2', checkpoint=str(path)
    )
    model = MODELS.build(dict(type='MobileNetV2', widen_factor=0.25, init_cfg=init_cfg))
    model.init_weights()
    assert model.conv2.bn.running_var.equal(original['features.18.1.running_var'])


def test_children_do_not_overwrite_it(mae):
    class Restless(nn.Module):
        """A child that does not keep account of its initialisation."""

        def __init__(self, inner):
            super().__init__()
            self.weight, self.bias = inner.weight, inner.bias

        def init_weights(self):
            nn.init.zeros_(self.weight)

    model = vit('mae', mae)
    model.ln1 = Restless(model.ln1)
    model.patch_embed.init_cfg = dict(type='Constant', layer='Conv2d', val=5.0)
    model.init_weights()
    wanted = convert('mae', published(mae))
    assert all(model.state_dict()[key].equal(wanted[key]) for key in wanted)


def test_in_a_list_it_has_to_be_the_last(mae):
    ours = dict(type='ConvertedCheckpoint', source='mae', checkpoint=str(mae))
    other = dict(type='Constant', layer='Linear', val=0.0)
    model = vit('mae', mae, init_cfg=[other, ours])
    model.init_weights()
    assert model.layers[0].attn.qkv.weight.std() > 0
    with pytest.raises(ConfigError, match='must be last in the list'):
        vit('mae', mae, init_cfg=[ours, other]).init_weights()


def test_mistakes_are_told(mae, tmp_path):
    with pytest.raises(ConfigError, match="source: must be one of .*, got 'mea'; near: mae"):
        vit('mea', mae).init_weights()
    with pytest.raises(CheckpointError, match='looks like dino or mae, not dinov2'):
        vit('dinov2', mae).init_weights()
    with pytest.raises(MissingFileError, match='absent.pth .* does not exist; set init_cfg.checkp'):
        vit('mae', tmp_path / 'absent.pth').init_weights()
    assert 'ConvertedCheckpoint' in WEIGHT_INITIALIZERS


def test_a_missing_file_is_found_before_anything_runs(tmp_path):
    init = dict(type='ConvertedCheckpoint', source='mae', checkpoint=str(tmp_path / 'absent.pth'))
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=init))))
    with pytest.raises(MissingFileError, match='model.backbone.init_cfg.checkpoint=FILE_OR_URL'):
        require(PlannedRun(cfg, ['train']), only=('weight files',))
