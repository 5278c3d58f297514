"""Pairing feature maps."""

from __future__ import annotations

import pytest
import torch

from mmkd.alignments import FeatureAlignment
from mmkd.errors import ConfigError


def maps(*sizes, channels=4):
    return tuple(torch.randn(2, channels, size, size) for size in sizes)


def test_levels_are_paired_by_size_and_in_order():
    ours, theirs = maps(8, 4), maps(8, 4)
    pairs = FeatureAlignment()(ours, list(theirs), None)
    assert [
        (p.student is a, p.teacher is b) for p, a, b in zip(pairs, ours, theirs, strict=True)
    ] == [(True, True)] * 2
    more = maps(16, 8, 4, 2)
    pairs = FeatureAlignment()(ours, more, None)
    assert [p.teacher.shape[-1] for p in pairs] == [8, 4] and pairs[0].teacher is more[1]
    shifted = maps(4, 2, 1, 1)  # as many levels, other strides
    pairs = FeatureAlignment()(maps(8, 4, 2, 1), shifted, None)
    assert [p.teacher is t for p, t in zip(pairs, shifted[:3], strict=True)] == [True] * 3
    single = FeatureAlignment()(ours[0], theirs[0], None)
    assert len(single) == 1 and single[0].weight is None


def test_what_cannot_be_paired_says_why():
    with pytest.raises(
        ConfigError, match='no common level: the student has maps of 8x8, .*5x5, 3x3'
    ):
        FeatureAlignment()(maps(8), maps(5, 3), None)
    with pytest.raises(ConfigError, match='the student has maps of 8x8, the teacher of 4x4'):
        FeatureAlignment()(maps(8), maps(4), None)
    different = r'\(2, 4, 8, 8\) and teacher \(1, 4, 8, 8\) differ in shape'
    with pytest.raises(ConfigError, match=different):
        FeatureAlignment()(maps(8), [maps(8)[0][:1]], None)
    with pytest.raises(ConfigError, match="ConvConnector', in_channels=4, out_channels=6"):
        FeatureAlignment()(maps(8), maps(8, channels=6), None)
    with pytest.raises(ConfigError, match="the teacher's output is .*dict.*, not feature maps"):
        FeatureAlignment()(maps(8), dict(a=1), None)


def test_channels_may_differ_where_the_loss_does_not_compare_them():
    ours, theirs = torch.zeros(2, 4, 8, 8), torch.zeros(2, 6, 8, 8)
    (pair,) = FeatureAlignment(same_channels=False)(ours, theirs, None)
    assert pair.student is ours and pair.teacher is theirs
    with pytest.raises(ConfigError, match='level 0'):
        FeatureAlignment(same_channels=False)(ours[:1], theirs, None)
