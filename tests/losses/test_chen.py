"""The two losses of Chen et al. 2017: weighted cross-entropy and teacher-bounded regression."""

from __future__ import annotations

import math

import pytest
import torch
from waves import rows, wave

from mmkd.errors import ConfigError
from mmkd.losses import BoundedRegression, WeightedCrossEntropy

# ------------------------------------------------------------------ weighted cross-entropy


def literal_cross_entropy(student, teacher, background, tau):
    total = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(v / tau) for v in side] for side in (t, s))
        p, q = ([v / sum(side) for v in side] for side in (p, q))
        weights = [1.0] * (len(p) - 1) + [background]
        total.append(
            -(tau**2) * sum(w * a * math.log(b) for w, a, b in zip(weights, p, q, strict=True))
        )
    return total


@pytest.mark.parametrize(('background', 'tau'), [(1.5, 1.0), (1.0, 3.0), (0.0, 1.0)])
def test_cross_entropy_agrees_with_its_formula(background, tau):
    loss = WeightedCrossEntropy(background, tau)
    expected = literal_cross_entropy(rows(1), rows(2), background, tau)
    assert loss(rows(1), rows(2)).item() == pytest.approx(sum(expected) / 7, rel=1e-5)
    weight = torch.tensor([0.0, 1.0, 0.5, 0.0, 2.0, 1.0, 0.25])
    mean = sum(w * e for w, e in zip(weight.tolist(), expected, strict=True)) / weight.sum().item()
    assert loss(rows(1), rows(2), weight).item() == pytest.approx(mean, rel=1e-5)


def test_cross_entropy_is_least_where_the_weighted_probabilities_are():
    teacher = rows(2)
    weighted = teacher.clone()
    weighted[:, -1] += math.log(1.5)
    least = WeightedCrossEntropy(1.5)(weighted, teacher)
    for student in (teacher, rows(1), weighted + 0.1 * rows(3)):
        assert WeightedCrossEntropy(1.5)(student, teacher) > least


def test_what_the_teacher_calls_background_counts_more():
    teacher = torch.tensor([[0.0, 8.0]])
    wrong = torch.tensor([[8.0, 0.0]])
    plain, weighted = WeightedCrossEntropy(1.0), WeightedCrossEntropy(1.5)
    assert weighted(wrong, teacher).item() == pytest.approx(
        1.5 * plain(wrong, teacher).item(), rel=1e-2
    )
    assert weighted(teacher, wrong).item() == pytest.approx(plain(teacher, wrong).item(), rel=1e-2)


# ---------------------------------------------------------------- teacher-bounded regression


def literal_bounded(student, teacher, target, margin):
    total = []
    for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        own = sum((a - b) ** 2 for a, b in zip(s, y, strict=True))
        bound = sum((a - b) ** 2 for a, b in zip(t, y, strict=True))
        total.append(own if own + margin > bound else 0.0)
    return total


def deltas(phase):
    return wave((7, 4), phase)


@pytest.mark.parametrize('margin', [0.0, 3.0])
def test_bounded_regression_agrees_with_its_formula(margin):
    student, teacher, target = deltas(1), deltas(2), deltas(1.5)
    expected = literal_bounded(student, teacher, target, margin)
    assert 0 < sum(value == 0 for value in literal_bounded(student, teacher, target, 0)) < 7
    loss = BoundedRegression(margin)
    assert loss(student, teacher, target=target).item() == pytest.approx(
        sum(expected) / 7, rel=1e-5
    )
    weight = torch.tensor([0.0, 1.0, 0.5, 0.0, 2.0, 1.0, 0.25])
    mean = sum(w * e for w, e in zip(weight.tolist(), expected, strict=True)) / weight.sum().item()
    assert loss(student, teacher, weight, target=target).item() == pytest.approx(mean, rel=1e-5)


def test_a_student_as_good_as_its_teacher_is_left_alone():
    student = deltas(1).requires_grad_()
    value = BoundedRegression()(student, deltas(1), target=deltas(2))
    value.backward()
    assert value.item() == 0 and not student.grad.any()
    # Within the margin it goes on learning, from the labels.
    assert BoundedRegression(0.1)(student, deltas(1), target=deltas(2)) > 0


def test_the_gradient_points_to_the_labels_and_not_to_the_teacher():
    student = torch.zeros(1, 4, requires_grad=True)
    teacher, target = torch.full((1, 4), -0.5), torch.ones(1, 4)
    (gradient,) = torch.autograd.grad(
        BoundedRegression(10.0)(student, teacher, target=target), student
    )
    assert (gradient < 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_both_are_finite_in_half_precision_and_without_rows(dtype):
    for loss, extra in (
        (WeightedCrossEntropy(), {}),
        (BoundedRegression(), dict(target=rows(3) * 30)),
    ):
        student = (rows(1) * 30).to(dtype).requires_grad_()
        value = loss(student, (rows(2) * 30).to(dtype), **extra)
        value.backward()
        assert value.dtype == torch.float32 and value.isfinite() and student.grad.isfinite().all()
        none = {key: target[:0] for key, target in extra.items()}
        assert loss(student[:0], rows(2)[:0], **none) == 0
        assert loss(student, rows(2), torch.zeros(7), **extra) == 0
        order = torch.tensor([3, 1, 0, 6, 5, 4, 2])
        shuffled = {key: target[order] for key, target in extra.items()}
        assert torch.allclose(
            loss(rows(1)[order], rows(2)[order], **shuffled), loss(rows(1), rows(2), **extra)
        )


def test_options_are_checked():
    for make, message in (
        (lambda: WeightedCrossEntropy(tau=0), 'tau must be above 0, got 0'),
        (
            lambda: WeightedCrossEntropy(background_weight=-1),
            'background_weight must not be negative',
        ),
        (lambda: BoundedRegression(margin=-1), 'margin must not be negative, got -1'),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
