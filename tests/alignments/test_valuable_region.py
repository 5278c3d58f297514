"""The valuable localization region, against a literal transcription."""

from __future__ import annotations

import statistics

import torch

from mmkd.alignments.valuable_region import valuable_region


def iou(a, b):
    width, height = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def squared_distance(a, b):
    return sum(((a[i] + a[i + 2]) - (b[i] + b[i + 2])) ** 2 / 4 for i in (0, 1))


def diou(a, b):
    hull = sum((max(a[i + 2], b[i + 2]) - min(a[i], b[i])) ** 2 for i in (0, 1))
    return iou(a, b) - squared_distance(a, b) / hull


def literal(levels, images, gamma, count):
    result = [torch.zeros(len(images), len(level)) for level in levels]
    for n, boxes in enumerate(images):
        for box in boxes:
            overlaps = []
            for level in levels:
                nearest = sorted(level, key=lambda anchor: squared_distance(box, anchor))[:count]
                overlaps += [iou(box, anchor) for anchor in nearest]
            threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
            for values, level in zip(result, levels, strict=True):
                for a, anchor in enumerate(level):
                    if gamma * threshold <= diou(box, anchor) < threshold:
                        values[n, a] = max(values[n, a].item(), iou(box, anchor))
    return result


def grid(size, stride, length):
    half = length / 2
    return [
        (x * stride - half, y * stride - half, x * stride + half, y * stride + half)
        for y in range(size[0])
        for x in range(size[1])
    ]


def test_agrees_with_its_definition():
    levels = [grid((8, 10), 8, 30.1), grid((4, 5), 16, 61.3), grid((1, 2), 50, 120.7)]
    images = [[(10.3, 8.2, 40.9, 44.1), (30.2, 5.7, 77.1, 60.4)], [], [(3.3, 3.1, 70.2, 58.6)]]
    boxes = torch.tensor([box for image in images for box in image])
    index = torch.tensor([0, 0, 2])
    anchors = [torch.tensor(level) for level in levels]
    for gamma, count in ((0.25, 9), (0.6, 3)):
        found = valuable_region(anchors, boxes, index, 3, gamma, count)
        wanted = literal(levels, images, gamma, count)
        for mine, theirs in zip(found, wanted, strict=True):
            assert torch.allclose(mine, theirs, atol=1e-5)
        assert any(level.any() for level in found) and not any(level[1].any() for level in found)


def test_no_object_makes_nothing_valuable():
    anchors = [torch.tensor(grid((4, 4), 8, 16.0))]
    (found,) = valuable_region(anchors, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 2)
    assert found.shape == (2, 16) and not found.any()


def test_the_best_anchor_of_an_object_is_not_valuable_but_those_around_it_are():
    """It is a positive already, which the labels themselves teach."""
    anchors = torch.tensor(grid((9, 9), 8, 32.0))
    box = anchors[40:41]
    (found,) = valuable_region([anchors], box, torch.zeros(1, dtype=torch.long), 1)
    assert found[0, 40] == 0 and (found[0, [38, 42, 22, 58]] > 0).all() and found[0, 0] == 0
