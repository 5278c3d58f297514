import pytest
import torch
from mmcv.ops import RoIAlign

from mmkd.errors import ConfigError
from mmkd.models import ClassTokenPyramid, SimpleFeaturePyramid


def sizes(levels):
    return [tuple(level.shape[1:]) for level in levels]


def test_levels_are_those_of_fpn():
    neck = SimpleFeaturePyramid(32, 8)
    assert sizes(neck([torch.randn(2, 32, 4, 6)])) == [
        *((8, 16, 24), (8, 8, 12), (8, 4, 6), (8, 2, 3), (8, 1, 2)),
    ]


def test_patches_of_eight_pixels():
    neck = SimpleFeaturePyramid(32, 8, in_stride=8, num_outs=4)
    assert sizes(neck([torch.randn(1, 32, 8, 8)])) == [(8, 16, 16), (8, 8, 8), (8, 4, 4), (8, 2, 2)]


@pytest.mark.parametrize('kind', [SimpleFeaturePyramid, ClassTokenPyramid])
def test_levels_lie_in_memory_as_roi_align_reads_them(kind):
    """mmcv's does not look at strides: it would pool other channels and places without a word."""
    levels = kind(32, 8)([(torch.randn(1, 32, 8, 8), torch.randn(1, 32))])
    rois = torch.tensor([[0, 4.0, 2.0, 100.0, 90.0]])
    for level, stride in zip(levels, (4, 8, 16, 32, 64), strict=True):
        pooled = RoIAlign(3, 1 / stride)(level, rois)
        by_hand = RoIAlign(3, 1 / stride)(level.clone(memory_format=torch.contiguous_format), rois)
        assert level.is_contiguous() and torch.equal(pooled, by_hand)


def test_the_last_map_alone_is_used():
    neck, map_ = SimpleFeaturePyramid(32, 8), torch.randn(1, 32, 4, 4)
    one = neck([torch.randn(1, 32, 9, 9), map_])
    other = neck([(map_, torch.randn(1, 32))])
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_places_stay_where_they_are():
    neck = SimpleFeaturePyramid(32, 8, num_outs=4).eval()
    map_ = torch.randn(1, 32, 8, 8)
    changed = map_.clone()
    changed[:, :, 2, 5] += 1
    for stride, one, other in zip((4, 8, 16, 32), neck([map_]), neck([changed]), strict=True):
        rows, columns = (one - other).abs().sum(1)[0].nonzero(as_tuple=True)
        # The changed patch in pixels, and a place more on each side for the 3x3 convolution.
        assert rows.min() == max(0, 32 // stride - 1) and rows.max() == (48 - 1) // stride + 1
        assert columns.min() == 80 // stride - 1
        assert columns.max() == min((96 - 1) // stride + 1, len(one[0, 0]) - 1)


def test_a_repeated_class_token_tells_no_places():
    neck = ClassTokenPyramid(32, 8, num_outs=4)
    map_, token = torch.randn(1, 32, 8, 8), torch.randn(1, 32)
    levels = neck([(map_, token)])
    other = neck([(torch.randn(1, 32, 8, 8), token)])
    assert all(torch.equal(a, b) for a, b in zip(levels, other, strict=True))
    # Transposed convolutions repeat a pattern of their own within each place of the map.
    for level, period in zip(levels, (4, 2, 1, 1), strict=True):
        inner = level[:, :, period:-period, period:-period]
        if inner.numel():
            assert torch.allclose(inner, inner.roll((period, period), (2, 3)), atol=1e-5)


def test_it_has_the_weights_of_the_one_on_patches():
    one, other = SimpleFeaturePyramid(32, 8), ClassTokenPyramid(32, 8)
    other.load_state_dict(one.state_dict())
    map_ = torch.randn(1, 32, 1, 1)
    for a, b in zip(
        one([map_.expand(1, 32, 4, 4)]),
        other([(torch.zeros(1, 32, 4, 4), map_[:, :, 0, 0])]),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(strides=(3, 8, 16, 32)), 'strides: must be 16 times a power of two, got 3'),
        (dict(in_channels=6), 'in_channels: must be a multiple of 4 for stride 4, got 6'),
        (dict(num_outs=3), 'num_outs: must be at least 4, the number of strides, got 3'),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        SimpleFeaturePyramid(**dict(dict(in_channels=32), **options))


def test_class_tokens_must_be_there():
    with pytest.raises(ConfigError, match='output_class_token=True'):
        ClassTokenPyramid(32, 8)([torch.randn(1, 32, 4, 4)])
