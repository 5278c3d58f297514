"""Pairing feature maps."""

from __future__ import annotations

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmkd.alignments import FeatureAlignment, ForegroundFeatureAlignment, Step
from mmkd.errors import ConfigError

STEP = Step([], None, None, None, None)


def maps(*sizes, channels=4):
    return tuple(torch.randn(2, channels, size, size) for size in sizes)


def test_levels_are_paired_by_size_and_in_order():
    ours, theirs = maps(8, 4), maps(8, 4)
    pairs = FeatureAlignment()(ours, list(theirs), STEP)
    assert [
        (p.student is a, p.teacher is b) for p, a, b in zip(pairs, ours, theirs, strict=True)
    ] == [(True, True)] * 2
    more = maps(16, 8, 4, 2)
    pairs = FeatureAlignment()(ours, more, STEP)
    assert [p.teacher.shape[-1] for p in pairs] == [8, 4] and pairs[0].teacher is more[1]
    shifted = maps(4, 2, 1, 1)  # as many levels, other strides
    pairs = FeatureAlignment()(maps(8, 4, 2, 1), shifted, STEP)
    assert [p.teacher is t for p, t in zip(pairs, shifted[:3], strict=True)] == [True] * 3
    single = FeatureAlignment()(ours[0], theirs[0], STEP)
    assert len(single) == 1 and single[0].weight is None


def test_what_cannot_be_paired_says_why():
    with pytest.raises(
        ConfigError, match='no common level: the student has maps of 8x8, .*5x5, 3x3'
    ):
        FeatureAlignment()(maps(8), maps(5, 3), STEP)
    with pytest.raises(ConfigError, match='the student has maps of 8x8, the teacher of 4x4'):
        FeatureAlignment()(maps(8), maps(4), STEP)
    different = r'\(2, 4, 8, 8\) and \(1, 4, 8, 8\)'
    with pytest.raises(ConfigError, match=different):
        FeatureAlignment()(maps(8), [maps(8)[0][:1]], STEP)
    with pytest.raises(ConfigError, match="ConvConnector', in_channels=4, out_channels=6"):
        FeatureAlignment()(maps(8), maps(8, channels=6), STEP)
    with pytest.raises(
        ConfigError, match='teacher: the recorded output must be feature maps, got .*dict'
    ):
        FeatureAlignment()(maps(8), dict(a=1), STEP)


def test_channels_may_differ_where_the_loss_does_not_compare_them():
    ours, theirs = torch.zeros(2, 4, 8, 8), torch.zeros(2, 6, 8, 8)
    (pair,) = FeatureAlignment(same_channels=False)(ours, theirs, STEP)
    assert pair.student is ours and pair.teacher is theirs
    with pytest.raises(ConfigError, match='level 0'):
        FeatureAlignment(same_channels=False)(ours[:1], theirs, STEP)


def test_some_of_the_common_levels_can_be_chosen():
    ours, theirs = maps(8, 4, 2), maps(16, 8, 4, 2)
    pairs = FeatureAlignment(levels=[0, 2])(ours, theirs, STEP)
    assert [pair.student is ours[index] for pair, index in zip(pairs, (0, 2), strict=True)]
    assert [pair.teacher is theirs[index] for pair, index in zip(pairs, (1, 3), strict=True)]
    for wrong in ([3], [-1], []):
        with pytest.raises(
            ConfigError, match='align.levels: must be indices of common levels, 0 to 2'
        ):
            FeatureAlignment(levels=wrong)(ours, theirs, STEP)


def literal_foreground(images, size, shape):
    height, width = size
    result = torch.zeros(len(images), height, width)
    for n, boxes in enumerate(images):
        for x1, y1, x2, y2 in boxes:
            x1, x2 = int(x1 * width / shape[1]), min(-int(-x2 * width // shape[1]), width - 1)
            y1, y2 = int(y1 * height / shape[0]), min(-int(-y2 * height // shape[0]), height - 1)
            area = (x2 - x1 + 1) * (y2 - y1 + 1)
            for y in range(y1, y2 + 1):
                for x in range(x1, x2 + 1):
                    result[n, y, x] = max(result[n, y, x].item(), 1 / area)
    return result


def labelled_step(images, shape, image=None):
    samples = []
    for boxes in images:
        sample = DetDataSample(metainfo=dict(img_shape=image or shape, batch_input_shape=shape))
        sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4))
        samples.append(sample)
    return Step(samples, None, None, None, STEP)


def test_foreground_is_what_the_labelled_boxes_cover():
    images = [
        [(4.0, 4.0, 30.0, 20.0), (20.0, 10.0, 60.0, 44.0)],
        [],
        [(0.0, 0.0, 16.0, 40.0), (3.0, 3.0, 4.0, 4.0), (63.0, 47.0, 64.0, 48.0)],
    ]
    step = labelled_step(images, (48, 64))
    levels = tuple(torch.randn(3, 2, *size) for size in ((12, 16), (6, 8), (3, 4), (1, 1)))
    pairs = ForegroundFeatureAlignment()(levels, levels, step)
    for pair, level in zip(pairs, levels, strict=True):
        size = tuple(level.shape[2:])
        assert torch.allclose(pair.target, literal_foreground(images, size, (48, 64)))
        assert not pair.target[1].any() and pair.target[2].any()
    # An image without any label among others, and a batch without any.
    (pair,) = ForegroundFeatureAlignment()(levels[0], levels[0], labelled_step([[]] * 3, (48, 64)))
    assert pair.target.shape == (3, 12, 16) and not pair.target.any()


def test_the_foreground_ends_with_the_image():
    step = labelled_step([[(0.0, 0.0, 39.0, 39.0)]], (40, 80), image=(40, 40))
    level = torch.zeros(1, 2, 10, 20)
    (pair,) = ForegroundFeatureAlignment()(level, level, step)
    assert (pair.target[0, :, :10] == 0.01).all() and not pair.target[0, :, 10:].any()
