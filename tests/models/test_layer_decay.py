import pytest
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmkd.errors import ConfigError
from mmkd.models import VisionTransformer

ARCH = dict(embed_dims=16, num_layers=3, num_heads=2)


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Conv2d(16, 8, 1)


def rates(model, **paramwise):
    build = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type='LayerDecayConstructor',
            optim_wrapper_cfg=dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1)),
            paramwise_cfg=paramwise,
        )
    )
    groups = build(model).optimizer.param_groups
    names = {id(value): name for name, value in model.named_parameters()}
    return {names[id(group['params'][0])]: group for group in groups}


def test_each_layer_learns_more_slowly_than_the_next():
    model = Detector(VisionTransformer(ARCH, img_size=64))
    found = rates(
        model,
        layer_decay_rate=0.5,
        norm_decay_mult=0.0,
        custom_keys={'pos_embed': dict(decay_mult=0.0), 'neck': dict(lr_mult=0.1)},
    )
    assert found.keys() == dict(model.named_parameters()).keys()
    expected = {
        'backbone.patch_embed.projection.weight': 0.5**4,
        'backbone.pos_embed': 0.5**4,
        'backbone.layers.0.attn.qkv.weight': 0.5**3,
        'backbone.layers.2.ffn.layers.1.bias': 0.5,
        'backbone.ln1.weight': 1.0,
        'neck.weight': 0.1,
    }
    assert {name: found[name]['lr'] for name in expected} == pytest.approx(expected)
    assert found['backbone.pos_embed']['weight_decay'] == 0.0
    assert found['backbone.layers.1.ln1.weight']['weight_decay'] == 0.0
    assert found['backbone.layers.1.attn.proj.weight']['weight_decay'] == 0.1


def test_frozen_layers_stay_frozen():
    model = Detector(VisionTransformer(ARCH, img_size=64, frozen_stages=2))
    rates(model, layer_decay_rate=0.5)
    assert not model.backbone.layers[1].attn.qkv.weight.requires_grad


def test_no_rate_is_an_error():
    with pytest.raises(ConfigError, match='layer_decay_rate'):
        rates(Detector(VisionTransformer(ARCH, img_size=64)))


def test_a_backbone_without_depths_is_an_error():
    with pytest.raises(ConfigError, match='needs a backbone with get_layer_depth'):
        rates(Detector(nn.Conv2d(3, 16, 3)), layer_decay_rate=0.5)
