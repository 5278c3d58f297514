"""mmkd/alignments/decoder_layers.py."""

from __future__ import annotations

import pytest

from mmkd.alignments import layer_map
from mmkd.errors import ConfigError


@pytest.mark.parametrize(
    ('student', 'teacher', 'layers', 'pairs'),
    [
        (3, 6, 'all', [(0, 1), (1, 3), (2, 5)]),
        (6, 3, 'all', [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]),
        (6, 6, 'all', [(i, i) for i in range(6)]),
        (3, 6, 'last', [(2, 5)]),
        (3, 6, [0, -1], [(0, 1), (2, 5)]),
        (3, 6, [[0, 0], [-1, -1]], [(0, 0), (2, 5)]),
    ],
)
def test_layers_are_paired_by_their_share_of_the_depth(student, teacher, layers, pairs):
    assert layer_map(student, teacher, layers) == pairs


def test_layers_that_do_not_exist_are_named():
    for layers, message in (
        ([3], 'align.layers: must name decoder layers of the student, 0 to 2, got 3'),
        ([[0, 6]], 'align.layers: must name decoder layers of the teacher, 0 to 5, got 6'),
        ('first', "must be 'all', 'last' or a list, got 'first'"),
        ([], 'must name at least one layer'),
    ):
        with pytest.raises(ConfigError, match=message):
            layer_map(3, 6, layers)
