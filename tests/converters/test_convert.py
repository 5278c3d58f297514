"""Converted weights compute what the original computed; what is of another kind is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from mmdet.models.backbones import MobileNetV2
from original_vits import ARCH, WIDTH, OriginalViT, OriginalViTDet, original_mobilenet_v2

from mmkd.converters import FORMATS, convert
from mmkd.errors import CheckpointError, ConfigError
from mmkd.models import SimpleFeaturePyramid, VisionTransformer

IMAGE = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(1))
WEIGHTS = Path(__file__).parents[3] / 'shared/weights/mobilenet_v2_imagenet_mmdet.pth'


def vit(**options) -> VisionTransformer:
    options = dict(arch=ARCH, img_size=20, patch_size=4) | options
    return VisionTransformer(**options).eval()


@torch.no_grad()
def patches(model: VisionTransformer) -> torch.Tensor:
    """Of one image, shape (L, C)."""
    return model(IMAGE)[-1][0].flatten(1).T


def assert_same(model: VisionTransformer, original: OriginalViT) -> None:
    with torch.no_grad():
        wanted = original(IMAGE)
    assert wanted.std() > 0.1
    torch.testing.assert_close(patches(model), wanted, atol=1e-5, rtol=1e-5)


def training_of_dino(original: OriginalViT) -> dict:
    """What main_dino.py saves: student (in DDP), teacher, heads, options."""

    def wrapped(state, prefix):
        head = {f'{prefix}head.mlp.0.weight': torch.ones(2), f'{prefix}head.last_layer.weight_g': 1}
        return {f'{prefix}backbone.{key}': value for key, value in state.items()} | head

    state = original.state_dict()
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    return dict(student=wrapped(zeros, 'module.'), teacher=wrapped(state, ''), epoch=3)


def chunked(original: OriginalViT) -> dict:
    """What DINOv2's training saves of its teacher: layers in chunks of two, three heads."""

    def rename(key):
        if not key.startswith('blocks.'):
            return f'backbone.{key}'
        index = int(key.split('.')[1])
        return f'backbone.blocks.{index // 2}.{key.removeprefix("blocks.")}'

    state = {rename(key): value for key, value in original.state_dict().items()}
    assert 'backbone.blocks.1.2.norm1.weight' in state
    return dict(teacher=state | {'dino_head.a': torch.ones(1), 'ibot_head.a': torch.ones(1)})


def pretraining_of_mae(original: OriginalViT) -> dict:
    names = (
        'mask_token',
        'decoder_pos_embed',
        'decoder_embed.weight',
        'decoder_blocks.0.norm1.bias',
    )
    return dict(model=original.state_dict() | {name: torch.ones(1) for name in names})


@pytest.mark.parametrize('wrap', [OriginalViT.state_dict, training_of_dino])
def test_dino(wrap):
    original = OriginalViT(5, 4)
    model = vit()
    model.load_state_dict(convert('dino', wrap(original)))
    assert_same(model, original)


@pytest.mark.parametrize('wrap', [OriginalViT.state_dict, chunked])
@pytest.mark.parametrize('registers', [0, 4])
def test_dinov2(wrap, registers):
    original = OriginalViT(5, 4, registers, layer_scale=True)
    state = wrap(original)
    (state if wrap is OriginalViT.state_dict else state['teacher'])['mask_token'] = torch.ones(1)
    model = vit(num_registers=registers, layer_scale=1.0)
    model.load_state_dict(convert('dinov2', state))
    assert_same(model, original)


@pytest.mark.parametrize('wrap', [lambda vit: dict(model=vit.state_dict()), pretraining_of_mae])
def test_mae(wrap):
    original = OriginalViT(5, 4)
    model = vit()
    model.load_state_dict(convert('mae', wrap(original)))
    assert_same(model, original)


def test_mae_fine_tuned_has_no_final_norm():
    original = OriginalViT(5, 4, last='fc_norm')
    head = {'head.weight': torch.ones(2), 'head.bias': torch.ones(2)}
    model = vit(final_norm=False)
    model.load_state_dict(convert('mae', dict(model=original.state_dict() | head)))
    assert_same(model, original)


def test_without_the_class_token_its_position_goes_too():
    state = OriginalViT(5, 4).state_dict()
    whole = convert('dino', state)
    rest = convert('dino', state, class_token=False)
    assert whole.keys() - rest.keys() == {'cls_token'}
    assert rest['pos_embed'].equal(whole['pos_embed'][:, 1:])
    vit(class_token=False).load_state_dict(rest)


@torch.no_grad()
def test_vitdet():
    original = OriginalViTDet(side=5, patch=4, window=2)
    backbone = vit(
        class_token=False, final_norm=False, window_size=2, global_layers=(2,), rel_pos_grid=5
    )
    neck = SimpleFeaturePyramid(WIDTH, 8, in_stride=4, strides=(1, 2, 4, 8))
    model = torch.nn.ModuleDict(dict(backbone=backbone, neck=neck))
    model.load_state_dict(convert('vitdet', dict(model=original.state_dict(), iteration=1)))
    map_, levels = original(IMAGE)
    assert map_.std() > 0.1
    torch.testing.assert_close(backbone(IMAGE)[0][0], map_, atol=1e-5, rtol=1e-5)
    for got, wanted in zip(neck(backbone(IMAGE)), levels, strict=True):
        torch.testing.assert_close(got[0], wanted, atol=1e-4, rtol=1e-4)

    other = vit(
        class_token=False, final_norm=False, window_size=2, global_layers=(2,), rel_pos_grid=5
    )
    other.load_state_dict(convert('vitdet', original.state_dict(), backbone_only=True))
    assert patches(other).equal(patches(backbone))


@torch.no_grad()
def test_torchvision_mobilenet_v2():
    original = original_mobilenet_v2(width=0.25)
    model = MobileNetV2(widen_factor=0.25, out_indices=(0, 2, 7))
    model.load_state_dict(convert('torchvision-mobilenetv2', original.state_dict()))
    model.eval()
    maps, wanted = IMAGE, []
    for layer in original['features']:
        maps = layer(maps)
        wanted.append(maps)
    # The stem, the 17 blocks in layers of 1, 2, 3, 4, 3, 3 and 1, the last convolution.
    for got, index in zip(model(IMAGE), (1, 6, 18), strict=True):
        torch.testing.assert_close(got, wanted[index], atol=1e-5, rtol=1e-5)


def test_real_mobilenet_v2_comes_back():
    path = Path(os.environ.get('MMKD_SHARED_WEIGHTS', WEIGHTS.parent)) / WEIGHTS.name
    if not path.is_file():
        pytest.skip(f'no real weights: {path}')
    real = torch.load(path, weights_only=True)
    real = real.get('state_dict', real)
    names = {new: old for old, new in FORMATS['torchvision-mobilenetv2'].names.items()}
    original = original_mobilenet_v2(width=1.0)
    theirs = {names[key]: value for key, value in real.items()}
    state = {key: value for key, value in original.state_dict().items() if 'classifier' in key}
    original.load_state_dict(theirs | state)
    converted = convert('torchvision-mobilenetv2', original.state_dict())
    assert converted.keys() == real.keys()
    assert all(converted[key].equal(real[key]) for key in real)
    model = MobileNetV2(out_indices=(7,))
    model.load_state_dict(converted)
    model.eval()
    with torch.no_grad():
        wanted = original['features'](IMAGE)
        torch.testing.assert_close(model(IMAGE)[0], wanted, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------ what is refused


def test_files_of_another_kind_are_recognised():
    dino = OriginalViT(5, 4).state_dict()
    dinov2 = OriginalViT(5, 4, layer_scale=True).state_dict()
    mobilenet = original_mobilenet_v2().state_dict()
    vitdet = OriginalViTDet(5, 4, 2).state_dict()
    for source, state, message in (
        ('dinov2', dino, r'^F looks like dino or mae, not dinov2: 6 missing: blocks.0.ls1.gamma, '),
        ('dino', dinov2, r'^F looks like dinov2, not dino: 6 unknown: blocks.0.ls1.gamma, '),
        (
            'dino',
            mobilenet,
            r'^F looks like torchvision-mobilenetv2, not dino: .* missing: cls_token',
        ),
        ('mae', vitdet, r'^F looks like vitdet, not mae: .* missing'),
        ('vitdet', dict(model=dino), r'^F looks like dino or mae, not vitdet'),
        ('torchvision-mobilenetv2', dinov2, r'^F looks like dinov2, not torchvision-mobilenetv2'),
        ('mae', {}, r'^F is not mae: 16 missing: cls_token'),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert(source, state, where='F')


def test_every_unknown_and_missing_name_is_an_error():
    state = OriginalViT(5, 4).state_dict()
    with pytest.raises(CheckpointError, match=r'is not mae: 1 unknown: blocks.1.extra$'):
        convert('mae', state | {'blocks.1.extra': torch.ones(1)})
    with pytest.raises(CheckpointError, match='1 unknown: cls_token'):
        convert('mae', state | {'cls_token': 'no tensor'})
    with pytest.raises(CheckpointError, match='1 unknown: backbone.cls_token'):  # there twice
        convert('dino', state | {'backbone.cls_token': state['cls_token']})
    del state['blocks.1.attn.qkv.bias']
    with pytest.raises(CheckpointError, match=r'is not dino: 1 missing: blocks.1.attn.qkv.bias$'):
        convert('dino', state)


def test_a_source_that_does_not_exist_offers_near_ones():
    with pytest.raises(
        ConfigError, match=r"source: must be one of .*, got 'dino2'; near: dinov2, dino"
    ):
        convert('dino2', {})
    with pytest.raises(ConfigError, match='near: torchvision-mobilenetv2'):
        convert('mobilenetv2', {})
