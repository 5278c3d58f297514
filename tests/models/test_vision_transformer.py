"""The plain vision transformer; its outputs for converted weights are tested with the converters."""

import pytest
import torch
from torch import nn

from mmkd.errors import ConfigError
from mmkd.models import VisionTransformer
from mmkd.models.vision_transformer import from_windows, to_windows

ARCH = dict(embed_dims=16, num_layers=3, num_heads=2)
PLAIN = dict(class_token=False, final_norm=False)


def vit(**options):
    model = VisionTransformer(**dict(dict(arch=ARCH, img_size=64), **options))
    for value in model.parameters():  # relative positions start as zeros
        nn.init.normal_(value, std=0.1)
    return model


def same_output(one, other, size=(64, 96)):
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        ours, theirs = one.eval()(images)[0], other.eval()(images)[0]
    return torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    'options, size, expected',
    [
        (dict(), (64, 64), (4, 4)),
        (dict(), (70, 130), (5, 9)),  # padded
        (dict(patch_size=8), (64, 40), (8, 5)),
        (dict(img_size=56, patch_size=14), (56, 70), (4, 5)),
        (dict(img_size=56, patch_size=14, stride=16), (64, 96), (4, 6)),
        (dict(img_size=56, patch_size=14, stride=16), (65, 96), (5, 6)),
        (dict(window_size=3, rel_pos_grid=4, **PLAIN), (70, 130), (5, 9)),
    ],
)
def test_maps_cover_images_of_any_size(options, size, expected):
    (output,) = vit(**options)(torch.randn(2, 3, *size))
    assert output.is_contiguous()  # mmcv's RoIAlign does not look at strides
    assert output.shape == (2, 16, *expected)


def test_every_place_sees_its_own_patch():
    """Without attention's share each output depends on one patch: rows and columns are not mixed up."""
    model = vit(**PLAIN).eval()
    for layer in model.layers:
        nn.init.zeros_(layer.attn.proj.weight)
    images = torch.randn(1, 3, 64, 96)
    changed = images.clone()
    changed[:, :, 16:32, 64:80] += 1  # row 1, column 4
    difference = (model(images)[0] - model(changed)[0]).abs().sum(1)[0]
    assert difference.nonzero().tolist() == [[1, 4]]


def test_a_stride_beside_the_patch_size_resizes_the_image_and_keeps_places():
    model = vit(img_size=56, patch_size=14, stride=16, **PLAIN).eval()
    for layer in model.layers:
        nn.init.zeros_(layer.attn.proj.weight)
    images = torch.randn(1, 3, 64, 96)
    changed = images.clone()
    changed[:, :, 16:32, 64:80] += 1
    difference = (model(images)[0] - model(changed)[0]).abs().sum(1)[0]
    assert difference.argmax() == 1 * 6 + 4
    # Beyond the neighbours, into which resizing reaches, nothing changes.
    rows, columns = difference.nonzero(as_tuple=True)
    assert (rows - 1).abs().max() <= 1 and (columns - 4).abs().max() <= 1


def test_windows_are_cut_and_put_together():
    tokens = torch.randn(2, 7 * 10, 5)
    windows = to_windows(tokens, (7, 10), 3)
    assert windows.shape == (2 * 3 * 4, 9, 5)
    places = tokens.reshape(2, 7, 10, 5)
    assert torch.equal(windows[1].reshape(3, 3, 5), places[0, :3, 3:6])  # second of the first row
    assert torch.equal(windows[12][:3], places[1, 0, :3])  # first of the second image
    assert (windows[3].reshape(3, 3, 5)[:, 1:] == 0).all()  # beyond the right edge
    assert torch.equal(from_windows(windows, (7, 10), 3), tokens)


def test_a_window_as_large_as_the_image_is_global_attention():
    whole = vit(rel_pos_grid=4, **PLAIN)
    windows = vit(window_size=4, rel_pos_grid=4, **PLAIN)
    windows.load_state_dict(whole.state_dict())
    assert same_output(whole, windows, (64, 64))
    assert not same_output(whole, windows, (64, 128))


def test_global_layers_look_beyond_windows():
    options = dict(window_size=2, rel_pos_grid=4, **PLAIN)
    images = torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[:, :, -16:, -16:] += 1
    for layers, reaches in (((), False), ((1,), True), ((-1,), True)):
        model = vit(global_layers=layers, **options).eval()
        corner = (model(images)[0] - model(changed)[0])[0, :, 0, 0].abs().max()
        assert (corner > 0) == reaches


def test_relative_positions_are_distances():
    """Moving the content by a patch moves the output: only absolute positions would tell."""
    model = vit(rel_pos_grid=6, img_size=96, **PLAIN).eval()
    nn.init.zeros_(model.pos_embed)
    # A change of one place against a constant image, seen from afar, in rows and in columns.
    background = torch.zeros(1, 3, 96, 96)
    table = {}
    for row, column in ((2, 2), (2, 3), (3, 2)):
        images = background.clone()
        images[:, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 1
        attention = model.layers[0].attn
        tokens = model.layers[0].ln1(model.patch_embed(images)[0])
        q = attention.qkv(tokens).reshape(1, 36, 3, 2, 8).permute(2, 0, 3, 1, 4)[0]
        table[row, column] = attention._relative(q, (6, 6)).reshape(1, 2, 6, 6, 6, 6)
    for row, column in table:
        own = table[row, column][0, :, row, column]
        # The entry for the neighbour below and that for the one to the right.
        reference = table[2, 2][0, :, 2, 2]
        assert torch.allclose(own[:, row + 1, column], reference[:, 3, 2], atol=1e-6)
        assert torch.allclose(own[:, row, column + 1], reference[:, 2, 3], atol=1e-6)
    assert not torch.allclose(reference[:, 3, 2], reference[:, 2, 3])


def test_class_token_and_registers():
    model = vit(num_registers=3, output_class_token=True, out_indices=(0, -1))
    outputs = model(torch.randn(2, 3, 64, 64))
    assert [(map_.shape, token.shape) for map_, token in outputs] == [((2, 16, 4, 4), (2, 16))] * 2
    assert model.pos_embed.shape == (1, 1 + 16, 16)  # registers have no position
    images = torch.randn(1, 3, 64, 64)
    before = model(images)[-1][0]
    nn.init.zeros_(model.register_tokens)
    assert not torch.allclose(before, model(images)[-1][0])  # patches look at registers


def test_positions_are_interpolated_smoothly():
    model = vit(**PLAIN)
    ramp = torch.linspace(0, 1, 4)
    model.pos_embed.data = ramp[None, :, None].expand(4, 4, 16).reshape(1, 16, 16).clone()
    for layer in model.layers:  # the identity
        for part in (layer.attn.proj, layer.ffn.layers[1]):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    nn.init.zeros_(model.patch_embed.projection.weight)
    nn.init.zeros_(model.patch_embed.projection.bias)
    output = model(torch.zeros(1, 3, 64, 128))[0][0, 0]
    assert output.shape == (4, 8)
    assert torch.allclose(output, output[:1].expand(4, 8), atol=1e-6)  # rows alike
    assert (output[0].diff() > 0).all()


def test_drop_path_only_in_training():
    model = vit(drop_path_rate=0.9)
    images = torch.randn(4, 3, 64, 64)
    assert torch.equal(model.eval()(images)[0], model(images)[0])
    model.train()
    assert not torch.equal(model(images)[0], model(images)[0])


@pytest.mark.parametrize('stages', [-1, 0, 2, 3])
def test_frozen_stages(stages):
    model = vit(frozen_stages=stages, drop_path_rate=0.5, num_registers=1).train()
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    tops = {'.'.join(name.split('.')[: 2 if name.startswith('layers') else 1]) for name in frozen}
    expected = (
        {'cls_token', 'register_tokens', 'pos_embed', 'patch_embed'} if stages >= 0 else set()
    )
    expected |= {f'layers.{index}' for index in range(max(0, stages))}
    assert tops == expected | ({'ln1'} if stages == 3 else set())
    assert [layer.training for layer in model.layers] == [index >= stages for index in range(3)]
    output = model(torch.randn(1, 3, 64, 64))[0]
    assert output.requires_grad == (stages < 3)


def test_checkpointing_changes_no_gradient():
    plain, saving = vit(), vit(with_cp=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64)
    for model in (plain, saving):
        model.train()(images)[0].square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)


def test_layers_can_be_read_before_the_last_and_are_not_normalised_there():
    model = vit(out_indices=(1, 2))
    middle, last = model(torch.randn(1, 3, 64, 64))
    nn.init.zeros_(model.ln1.weight)
    nn.init.zeros_(model.ln1.bias)
    assert middle.abs().sum() > 0 and last.abs().sum() > 0
    middle, last = model(torch.randn(1, 3, 64, 64))
    assert middle.abs().sum() > 0 and last.abs().sum() == 0


def test_depths_of_parameters():
    model = vit(num_registers=1)
    depths = {
        name: model.get_layer_depth(f'backbone.{name}', 'backbone.')
        for name, _ in model.named_parameters()
    }
    assert depths['register_tokens'] == depths['patch_embed.projection.weight'] == (0, 5)
    assert depths['layers.0.ln1.weight'] == (1, 5) and depths['layers.2.attn.qkv.bias'] == (3, 5)
    assert depths['ln1.weight'] == (4, 5) == model.get_layer_depth('rpn_head.x', 'backbone.')


class TestLoading:
    def test_positions_of_another_grid(self):
        large, small = vit(img_size=128), vit()
        small.load_state_dict(large.state_dict())
        assert torch.equal(small.pos_embed[:, 0], large.pos_embed[:, 0])
        assert small.pos_embed.shape == (1, 17, 16)
        assert same_output(large, small, (128, 128)) is False  # shrunk and grown again
        again = vit(img_size=128)
        again.load_state_dict(large.state_dict())
        assert same_output(large, again, (128, 128))

    def test_positions_with_a_class_token_that_the_model_lacks(self):
        given, model = vit().state_dict(), vit(class_token=False)
        token = given.pop('cls_token')
        assert token.shape == (1, 1, 16)
        model.load_state_dict(given)
        assert torch.equal(model.pos_embed, given['pos_embed'][:, 1:])

    def test_positions_in_four_dimensions(self):
        model = vit(**PLAIN)
        state = model.state_dict()
        wanted = state['pos_embed'].clone()
        state['pos_embed'] = state['pos_embed'].reshape(1, 4, 4, 16)
        other = vit(**PLAIN)
        other.load_state_dict(state)
        assert torch.equal(other.pos_embed, wanted)

    def test_positions_without_a_class_token_that_the_model_has_are_refused(self):
        state = vit(**PLAIN).state_dict()
        with pytest.raises(RuntimeError, match='pos_embed'):
            vit().load_state_dict(state, strict=False)

    def test_relative_positions_of_another_grid(self):
        large, small = vit(rel_pos_grid=8, **PLAIN), vit(rel_pos_grid=4, **PLAIN)
        small.load_state_dict(large.state_dict())
        assert small.layers[0].attn.rel_pos_h.shape == (7, 8)
        middle = small.layers[0].attn.rel_pos_h[3], large.layers[0].attn.rel_pos_h[7]
        assert torch.allclose(*middle, atol=1e-6)  # distance 0


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(arch='bse'), "arch: must be one of .*, got 'bse'; near: base"),
        (dict(arch=dict(embed_dims=16)), 'arch: lacks num_heads, num_layers'),
        (
            dict(arch=dict(embed_dims=15, num_layers=1, num_heads=2)),
            'embed_dims must be a multiple of num_heads=2, got 15',
        ),
        (dict(window_size=3), 'class token and registers cannot be combined with windows'),
        (dict(class_token=False, num_registers=1, rel_pos_grid=4), 'cannot be combined'),
        (dict(class_token=False, output_class_token=True), 'output_class_token: must be False'),
        (dict(img_size=60), 'img_size: must be a multiple of patch_size=16, got 60'),
        (dict(out_indices=3), 'out_indices: must be from -3 to 2, got 3'),
        (dict(global_layers=(-4,)), 'global_layers: must be from -3 to 2, got -4'),
        (dict(frozen_stages=4), 'frozen_stages: must be from -1 to .* 3, got 4'),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        vit(**options)


@pytest.mark.parametrize('layer_scale', [0.0, 1.0])
def test_output_equals_that_of_mmpretrain(layer_scale):
    backbones = _mmpretrain()
    arch = dict(ARCH, feedforward_channels=64)
    theirs = backbones.VisionTransformer(
        arch=arch, img_size=64, out_type='featmap', layer_scale_init_value=layer_scale
    )
    ours = vit(layer_scale=layer_scale)
    theirs.load_state_dict(ours.state_dict())
    assert same_output(ours, theirs, (70, 130))


def test_output_with_windows_equals_that_of_mmpretrain():
    backbones = _mmpretrain()
    arch = dict(ARCH, feedforward_channels=64, global_attn_indexes=[1])
    theirs = backbones.ViTSAM(arch=arch, img_size=64, out_channels=0, window_size=3)
    ours = vit(window_size=3, global_layers=(1,), rel_pos_grid=4, **PLAIN)
    ours.load_state_dict(theirs.state_dict())
    assert same_output(ours, theirs, (70, 130))


def _mmpretrain():
    try:
        from mmpretrain.models import backbones
    except Exception as error:  # whatever it imports: torchvision, transformers
        pytest.skip(f'mmpretrain.models does not import: {error}')
    return backbones
