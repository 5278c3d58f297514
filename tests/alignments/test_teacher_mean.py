"""The mean over several teachers."""

from __future__ import annotations

import pytest
import torch

from mmkd.alignments import ClassMap, Pair
from mmkd.alignments.teacher_mean import mean_over_teachers, require_same_classes
from mmkd.errors import ConfigError


def pairs_of(*values, **fields):
    student = torch.randn(4, 3)
    return [[Pair(student, value, **fields)] for value in values]


def test_probabilities_are_averaged_and_not_scores():
    first, second = torch.randn(4, 3) * 4, torch.randn(4, 3) * 4
    for activation, probability in (
        ('softmax', lambda scores: scores.softmax(-1)),
        ('sigmoid', lambda scores: scores.sigmoid()),
        (None, lambda scores: scores),
    ):
        (pair,) = mean_over_teachers(pairs_of(first, second), [0.3, 0.7], activation)
        wanted = 0.3 * probability(first) + 0.7 * probability(second)
        assert torch.allclose(probability(pair.teacher), wanted, atol=1e-6), activation
    (pair,) = mean_over_teachers(pairs_of(first, first), [0.3, 0.7], 'softmax')
    assert torch.allclose(pair.teacher.softmax(-1), first.softmax(-1), atol=1e-6)


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_very_sure_teachers_stay_finite(activation):
    first = torch.tensor([[300.0, -300.0]])
    (pair,) = mean_over_teachers(pairs_of(first, -first), [0.5, 0.5], activation)
    assert torch.allclose(pair.teacher[0, 0], pair.teacher[0, 1], atol=1e-4)
    (pair,) = mean_over_teachers(pairs_of(first, first), [0.5, 0.5], activation)
    assert torch.allclose(pair.teacher, first, atol=1e-3) or activation == 'softmax'
    assert pair.teacher.isfinite().all()


def test_weights_and_divisors_are_averaged_and_labels_kept():
    values, target = torch.randn(4, 3), torch.arange(4)
    pairs = pairs_of(values, values, target=target)
    pairs[0][0].weight, pairs[0][0].total = torch.tensor([0.0, 1.0, 0.5, 2.0]), 7.0
    (pair,) = mean_over_teachers(pairs, [0.25, 0.75], None)
    assert torch.equal(pair.weight, 0.25 * pairs[0][0].weight + 0.75)
    assert pair.total == 0.25 * 7 + 0.75 * 4 and torch.equal(pair.target, target)
    assert pair.student is pairs[0][0].student
    (pair,) = mean_over_teachers(pairs_of(values, values), [0.5, 0.5], None)
    assert pair.weight is None and pair.total is None and pair.mask is None


def test_positions_count_where_they_do_with_all_teachers():
    maps = torch.randn(2, 3, 1, 4)
    pairs = pairs_of(maps, maps, maps)
    first, second = torch.rand(2, 1, 4) > 0.5, torch.rand(2, 1, 4) > 0.5
    pairs[0][0].mask, pairs[2][0].mask = first, second
    (pair,) = mean_over_teachers(pairs, [0.2, 0.3, 0.5], None)
    assert torch.equal(pair.mask, first & second)


def test_what_has_no_mean_is_refused():
    values = torch.randn(4, 3)
    with pytest.raises(ConfigError, match=r'teacher_name: the teachers.*\(4, 3\).*\(4, 2\)'):
        mean_over_teachers(pairs_of(values, values[:, :2]), [0.5, 0.5], None)
    with pytest.raises(ConfigError, match='levels in common .*, got 1 and 2'):
        mean_over_teachers([pairs_of(values)[0], pairs_of(values)[0] * 2], [0.5, 0.5], None)
    student = ('cat', 'dog', 'cow')
    maps = [
        ClassMap(student, ('cat', 'dog'), exclude=['cow']),
        ClassMap(student, ('cat', 'cow'), exclude=['dog']),
    ]
    require_same_classes([maps[0], ClassMap(student, ('dog', 'cat'), exclude=['cow'])])
    with pytest.raises(ConfigError, match='must share the same classes with the student'):
        require_same_classes(maps)
