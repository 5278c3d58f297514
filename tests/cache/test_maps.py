"""mmkd/cache/maps.py: feature maps, brought to other views."""

from __future__ import annotations

import pytest
import torch
from tiny_caches import answers, both, losses_of, single, view
from tiny_models import batch, faster_rcnn, feature_loss
from torch import Tensor

from mmkd.cache.maps import MapContent, _strides
from mmkd.cache.views import View
from mmkd.errors import ConfigError
from mmkd.recorder import Source

RAW = batch((128, 160))
NECK, THIRD = Source('neck'), Source('backbone', index=2)
COPIED = Source('backbone.layer2', copy=True)
SAME = dict(type='MSE', connector=dict(type='ConvConnector', in_channels=32, out_channels=32))
LOSSES = dict(
    loss_neck=feature_loss(),
    loss_third=dict(
        type='MSE',
        student=dict(module='backbone', index=2),
        teacher=dict(module='backbone', index=2),
    ),
    loss_copied=dict(
        type='AttentionTransfer',
        student='backbone.layer2',
        teacher=dict(module='backbone.layer2', copy=True),
    ),
)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp('maps')
    return both(folder, faster_rcnn(), faster_rcnn(channels=24), LOSSES, RAW)


def levels_of(value) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=2e-3)


def test_the_same_view_whatever_the_padding(models):
    live, cached = models
    for index, one in enumerate(single(RAW)):
        wanted = answers(live, one)[0]
        said, shared = answers(cached, one)
        padded, more = answers(cached, RAW)
        for source, truth in wanted.items():
            assert isinstance(said[source], Tensor) == isinstance(truth, Tensor)
            for number, (level, other) in enumerate(
                zip(levels_of(said[source]), levels_of(truth), strict=True)
            ):
                # The image's own cells; one of 144 pixels is padded to 160 when it is alone, too.
                height, width = (
                    -(-length // (other_stride(other, one, axis)))
                    for axis, length in enumerate(one['data_samples'][0].img_shape)
                )
                close(level[..., :height, :width], other[..., :height, :width])
                beside = levels_of(padded[source])[number][index]
                close(beside[:, :height, :width], other[0, :, :height, :width])
                known = more['stored_masks'][source][number][index]
                assert known.shape == (1, *beside.shape[1:])
                assert known[:, :height, :width].all()
                assert not known[:, :, width:].any()
                assert not beside[:, :, width:].any()
        if index == 0:
            assert not shared['stored_masks']  # all is stored


def other_stride(level: Tensor, raw: dict, axis: int) -> int:
    """Of a map of images padded to multiples of 32."""
    length = -(-raw['data_samples'][0].img_shape[axis] // 32) * 32
    return {160: {40: 4, 20: 8, 10: 16, 5: 32, 3: 64}, 128: {32: 4, 16: 8, 8: 16, 4: 32, 2: 64}}[
        length
    ][level.shape[2 + axis]]


def test_losses_of_one_image_are_those_with_the_teacher(models):
    live, cached = models
    one = single(RAW)[0]
    ours, theirs = losses_of(cached, one), losses_of(live, one)
    for name, value in theirs.items():
        assert float(ours[name]) == pytest.approx(float(value), rel=5e-3), name


def test_flips_of_whole_cells_mirror_them(models):
    _, cached = models
    one = single(RAW)[0]  # of 160 pixels: whole cells but of the coarsest level
    before, flipped = answers(cached, one)[0], answers(cached, view(one, flip=True))
    for source, value in before.items():
        for level, other in zip(levels_of(value), levels_of(flipped[0][source]), strict=True):
            if level.shape[-1] % 2 == 0 or level.shape[-1] == 5:
                close(other, level.flip(-1))
        for mask in flipped[1]['stored_masks'][source]:
            assert mask.all()


def test_crops_of_whole_cells_cut_them_out(models):
    """Convolutions saw more than the crop; what they saw is kept."""
    _, cached = models
    one = single(RAW)[0]
    before = answers(cached, one)[0]
    said, shared = answers(cached, view(one, crop=(32, 64, 160, 128)))
    for source, value in before.items():
        for number, (level, other) in enumerate(
            zip(levels_of(value), levels_of(said[source]), strict=True)
        ):
            stride = 64 if level.shape[-1] == 3 else 160 // level.shape[-1]
            if stride < 64:
                close(other, level[..., 64 // stride :, 32 // stride :])
            assert other.shape[2:] == (64 // stride, 128 // stride)
            assert shared['stored_masks'][source][number].all()


def test_resizing_samples_between_cells(models):
    """Of a map that rises evenly from left to right, any view does so, too."""
    _, cached = models
    one = single(RAW)[0]
    ramp = torch.arange(20.0).expand(1, 16, 20)
    fields = dict(cached.teacher.reader['0'])
    content = cached.teacher._contents[0]
    number = content.sources.index(COPIED)
    fields[f'maps.{number}.0'] = ramp.half()
    reader, cached.teacher.reader = cached.teacher.reader, {'0': fields}
    try:
        said, shared = answers(cached, view(one, crop=(16, 8, 144, 104), scale=2.0))
    finally:
        cached.teacher.reader = reader
    found = said[COPIED][0, 0]
    assert found.shape == (24, 32)
    assert shared['stored_masks'][COPIED][0].all()
    # A cell of 8 pixels is one of 4 in the old view, 16 pixels to the left of the crop.
    wanted = ((torch.arange(32) + 0.5) * 4 + 16) / 8 - 0.5
    close(found, wanted.expand(24, 32))


def test_positions_outside_of_the_old_view_are_not_stored(models):
    """An image moved to the right (TranslateX) shows nothing on its left."""
    _, cached = models
    one = single(RAW)[0]
    raw = view(one, flip=True)
    sample = raw['data_samples'][0]
    matrix = torch.eye(3, dtype=torch.float64).numpy()
    matrix[0, 2] = 64.0
    sample.set_metainfo(dict(homography_matrix=matrix))
    said, shared = answers(cached, raw)
    before = answers(cached, one)[0]
    level, known = said[COPIED][0], shared['stored_masks'][COPIED][0][0]
    assert not known[..., :8].any()
    assert known[..., 8:].all()
    assert not level[..., :8].any()
    close(level[..., 8:], before[COPIED][0][..., :12])
    assert all(torch.isfinite(value) for value in losses_of(cached, raw).values())


def test_losses_of_a_padded_batch_are_those_with_the_teacher(models):
    """Padding is not stored, and does not count with the teacher itself."""
    live, cached = models
    ours, theirs = losses_of(cached, RAW), losses_of(live, RAW)
    for name, value in theirs.items():
        assert value > 0
        assert ours[name].item() == pytest.approx(value.item(), rel=5e-3), name


def test_positions_that_are_not_stored_do_not_count(models):
    """Neither do the student's outputs there: its gradients are 0."""
    _, cached = models
    raw = view(single(RAW)[0], flip=True)
    matrix = torch.eye(3, dtype=torch.float64).numpy()
    matrix[0, 2] = 64.0  # moved to the right, so that nothing is stored of its left
    raw['data_samples'][0].set_metainfo(dict(homography_matrix=matrix))
    entry, maps = cached.entries['loss_third'], []
    hook = entry.loss.register_forward_pre_hook(lambda _, given: maps.append(given[0]))
    value = losses_of(cached, raw)['loss_third']
    hook.remove()
    (gradient,) = torch.autograd.grad(value, maps[0])
    assert not gradient[..., :4].any() and gradient[..., 4:].any()


@pytest.mark.parametrize('scale', [2, 0.5])
def test_images_of_another_size_for_the_teacher(tmp_path, scale):
    losses = dict(loss_neck=feature_loss())
    live, cached = both(tmp_path, faster_rcnn(), faster_rcnn(channels=24), losses, RAW, scale=scale)
    one = single(RAW)[0]
    said, wanted = answers(cached, one)[0], answers(live, one)[0]
    for level, other in zip(said[NECK], wanted[NECK], strict=True):
        close(level, other)
    flipped = answers(cached, view(one, flip=True))[0][NECK]
    close(flipped[0], wanted[NECK][0].flip(-1))
    ours, theirs = losses_of(cached, one), losses_of(live, one)
    assert float(ours['loss_neck']) == pytest.approx(float(theirs['loss_neck']), rel=5e-3)


def test_maps_that_are_resized_for_the_student(tmp_path):
    """A single map of a teacher of larger images has no counterpart of its size."""
    last = dict(module='backbone', index=3)
    loss = dict(type='MSE', student=last, teacher=last)
    config = faster_rcnn()
    live, cached = both(tmp_path, config, config, dict(loss_kd=loss), RAW, scale=2)
    one = single(RAW)[0]
    ours, theirs = (losses_of(model, one)['loss_kd'] for model in (cached, live))
    assert float(ours) == pytest.approx(float(theirs), rel=5e-3)
    for raw in (RAW, view(RAW, flip=True), view(RAW, crop=(20, 20, 120, 100), scale=2.0)):
        assert torch.isfinite(losses_of(cached, raw)['loss_kd'])


def test_other_factors_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r'losses\.loss_neck: maps can be stored .*got 1\.5'):
        both(
            tmp_path,
            faster_rcnn(),
            faster_rcnn(channels=24),
            dict(loss_neck=feature_loss()),
            RAW,
            scale=1.5,
        )


def test_any_layer_of_backbone_and_neck_gives_maps(tmp_path):
    config = faster_rcnn()
    loss = dict(type='MSE', student='neck.*.3.conv', teacher='neck.*.3.conv')
    live, cached = both(tmp_path, config, config, dict(loss_kd=loss), RAW)
    one = single(RAW)[0]
    (said,), (wanted,) = (answers(model, one)[0].values() for model in (cached, live))
    assert len(said) == len(wanted) == 2
    for level, other in zip(said, wanted, strict=True):
        close(level, other)


def test_what_is_no_map_is_refused(tmp_path):
    """A transformer in the backbone has tokens, (N, T, C)."""
    config = faster_rcnn()
    loss = dict(type='MSE', student='backbone', teacher='backbone')
    live, _ = both(tmp_path, config, config, dict(loss_kd=loss), RAW)
    content = MapContent(live.teacher.detector, live.teacher.family, [Source('backbone')])
    with pytest.raises(
        ConfigError,
        match=r"'backbone' cannot be stored.*feature maps \(N, C, H, W\), got shape \(1, 5, 8\)",
    ):
        content.extract(
            lambda _: torch.zeros(1, 5, 8), dict(padded=(32, 32)), 0, View((1, 1), (0, 0), (32, 32))
        )


@pytest.mark.parametrize(
    ('size', 'cells', 'likely', 'stride'),
    [
        ((128, 160), (32, 40), 0, 4),
        ((128, 160), (1, 2), 128, 128),  # two cells of 128 pixels, of which 96 are beyond
        ((96, 160), (2, 3), 64, 64),
        ((65, 65), (2, 2), 64, 64),
        ((64, 64), (1, 1), 128, 128),
        ((64, 64), (1, 1), 0, 64),
        ((800, 1344), (7, 11), 128, 128),
        ((800, 1344), (13, 21), 64, 64),
        ((800, 1344), (25, 42), 64, 32),  # not always twice the one before
        ((129, 257), (17, 33), 8, 8),
        ((96, 128), (96, 128), 0, 1),
    ],
)
def test_strides_are_told_by_sizes(size, cells, likely, stride):
    assert _strides(size, cells, likely) == [stride, stride]


def test_strides_of_layers_that_round_down():
    assert _strides((100, 150), (24, 37), 0) == [4, 4]
    assert _strides((100, 150), (12, 18), 8) == [8, 8]
