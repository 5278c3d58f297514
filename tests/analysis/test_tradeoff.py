"""The figure of accuracy against size."""

from __future__ import annotations

import pytest
from PIL import Image

from mmkd.analysis.tradeoff import SPACING, Point, _label_heights, draw_tradeoff

POINTS = [
    Point('teacher', 'teacher', 4_000_000, 0.31),
    Point('student', 'baseline', 700_000, 0.148, 0.01),
    Point('distilled', 'distilled', 700_000, 0.15, 0.02, 'student'),
    Point('alone', 'distilled', 900_000, 0.0, baseline='not drawn'),
]


@pytest.mark.parametrize('count', range(len(POINTS) + 1))
def test_draws_whatever_there_is(tmp_path, count):
    draw_tradeoff(POINTS[:count], tmp_path / 'out.png')
    with Image.open(tmp_path / 'out.png') as figure:
        assert figure.width > 800 and figure.format == 'PNG'


def test_labels_keep_their_distance():
    heights = sorted(_label_heights(POINTS, top=40))
    assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) >= 0.999 * SPACING * 40
