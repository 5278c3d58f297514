"""Every loss: against a literal transcription of its formula, and by the properties all share."""

from __future__ import annotations

import math

import pytest
import torch

from mmkd.errors import ConfigError
from mmkd.losses import L1, MSE, Contrastive, GIoU, IoU, KLDivergence, SmoothL1
from mmkd.losses.reduction import weighted_mean

ROWS = 7


def scores(seed):
    return torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(seed)) * 3


def boxes(seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(ROWS, 2, generator=generator) * 0.5
    return torch.cat([corner, corner + torch.rand(ROWS, 2, generator=generator) * 0.5 + 0.01], 1)


def literal_softmax_kl(student, teacher, tau):
    rows = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(v / tau) for v in t]
        q = [math.exp(v / tau) for v in s]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        rows.append(tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return rows


def literal_sigmoid_kl(student, teacher, tau):
    rows = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        total = 0.0
        for a, b in zip(t, s, strict=True):
            p, q = 1 / (1 + math.exp(-a / tau)), 1 / (1 + math.exp(-b / tau))
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        rows.append(tau**2 * total)
    return rows


def literal_distance(kind, beta=1.0):
    def rows(student, teacher):
        out = []
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
            d = [abs(a - b) for a, b in zip(s, t, strict=True)]
            if kind == 'mse':
                d = [v * v for v in d]
            elif kind == 'smooth':
                d = [v * v / (2 * beta) if v < beta else v - beta / 2 for v in d]
            out.append(sum(d) / len(d))
        return out

    return rows


def literal_giou(student, teacher):
    rows = []
    for (ax, ay, aX, aY), (bx, by, bX, bY) in zip(student.tolist(), teacher.tolist(), strict=True):
        width, height = max(0, min(aX, bX) - max(ax, bx)), max(0, min(aY, bY) - max(ay, by))
        inter = width * height
        union = (aX - ax) * (aY - ay) + (bX - bx) * (bY - by) - inter
        hull = (max(aX, bX) - min(ax, bx)) * (max(aY, bY) - min(ay, by))
        rows.append(1 - inter / union + (hull - union) / hull)
    return rows


def literal_iou(student, teacher):
    rows = []
    for (ax, ay, aX, aY), (bx, by, bX, bY) in zip(student.tolist(), teacher.tolist(), strict=True):
        inter = max(0, min(aX, bX) - max(ax, bx)) * max(0, min(aY, bY) - max(ay, by))
        union = (aX - ax) * (aY - ay) + (bX - bx) * (bY - by) - inter
        rows.append(-math.log(max(inter / union, 1e-6)))
    return rows


def literal_contrastive(student, teacher, tau):
    def unit(row):
        norm = math.sqrt(sum(v * v for v in row))
        return [v / norm for v in row]

    students, teachers = ([unit(row) for row in side.tolist()] for side in (student, teacher))
    rows = []
    for index, s in enumerate(students):
        alike = [math.exp(sum(a * b for a, b in zip(s, t, strict=True)) / tau) for t in teachers]
        rows.append(-math.log(alike[index] / sum(alike)))
    return rows


CASES = {
    'kl': (KLDivergence(), scores, lambda s, t: literal_softmax_kl(s, t, 1.0)),
    'kl-tau': (KLDivergence(tau=3.0), scores, lambda s, t: literal_softmax_kl(s, t, 3.0)),
    'kl-sigmoid': (
        KLDivergence(tau=2.0, activation='sigmoid'),
        scores,
        lambda s, t: literal_sigmoid_kl(s, t, 2.0),
    ),
    'mse': (MSE(), scores, literal_distance('mse')),
    'l1': (L1(), scores, literal_distance('l1')),
    'smooth-l1': (SmoothL1(beta=0.5), scores, literal_distance('smooth', 0.5)),
    'giou': (GIoU(), boxes, literal_giou),
    'iou': (IoU(), boxes, literal_iou),
}
every_loss = pytest.mark.parametrize('loss, make, literal', CASES.values(), ids=CASES)


@every_loss
def test_agrees_with_its_formula(loss, make, literal):
    student, teacher = make(1), make(2)
    rows = literal(student, teacher)
    assert loss(student, teacher).item() == pytest.approx(sum(rows) / ROWS, rel=1e-4)
    weight = torch.tensor([0.0, 1.0, 0.5, 0.0, 2.0, 1.0, 0.25])
    expected = sum(w * r for w, r in zip(weight.tolist(), rows, strict=True)) / weight.sum().item()
    assert loss(student, teacher, weight).item() == pytest.approx(expected, rel=1e-4)


@every_loss
def test_is_zero_when_both_agree_and_positive_otherwise(loss, make, literal):
    assert loss(make(1), make(1)).item() == pytest.approx(0.0, abs=1e-6)
    assert loss(make(1), make(2)).item() > 1e-3


@every_loss
def test_gradient_reaches_the_student_and_lowers_the_loss(loss, make, literal):
    student, teacher = make(1).requires_grad_(), make(2)
    value = loss(student, teacher)
    assert value.shape == ()
    (gradient,) = torch.autograd.grad(value, student)
    assert loss(student.detach() - 1e-3 * gradient, teacher) < value


@every_loss
def test_does_not_depend_on_the_order(loss, make, literal):
    order = torch.randperm(ROWS)
    student, teacher, weight = make(1), make(2), torch.rand(ROWS)
    assert torch.allclose(
        loss(student, teacher, weight), loss(student[order], teacher[order], weight[order])
    )


@every_loss
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_is_finite_in_half_precision(loss, make, literal, dtype):
    student = make(1).to(dtype).mul(20).requires_grad_()
    value = loss(student, make(2).to(dtype).mul(20))
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and student.grad.isfinite().all()


@every_loss
def test_nothing_to_compare_is_zero_with_a_gradient(loss, make, literal):
    student = make(1).requires_grad_()
    value = loss(student, make(2), torch.zeros(ROWS))
    value.backward()
    assert value.item() == 0 and not student.grad.any()
    empty = make(1)[:0].requires_grad_()
    value = loss(empty, make(2)[:0])
    value.backward()
    assert value.item() == 0


def test_extreme_scores_stay_finite():
    far = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    for activation in ('softmax', 'sigmoid'):
        assert KLDivergence(activation=activation)(far, -far).isfinite()


def test_weightless_entries_may_hold_anything():
    student = torch.tensor([[1.0], [float('inf')]], requires_grad=True)
    value = weighted_mean(student, torch.tensor([1.0, 0.0]))
    value.backward()
    assert value.item() == 1.0 and student.grad.isfinite().all()


def test_giou_does_not_depend_on_the_unit():
    scale = torch.tensor([640.0, 480.0, 640.0, 480.0])
    assert torch.allclose(
        GIoU()(boxes(1), boxes(2)), GIoU()(boxes(1) * scale, boxes(2) * scale), rtol=1e-4
    )


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match='tau must be above 0, got 0'):
        KLDivergence(tau=0)
    with pytest.raises(ConfigError, match="got 'tanh'"):
        KLDivergence(activation='tanh')
    with pytest.raises(ConfigError, match='use L1'):
        SmoothL1(beta=0)
    for loss in (GIoU(), IoU()):
        with pytest.raises(ConfigError, match=r"shape \(N, 4\), got \(7, 5\).*coordinates='box'"):
            loss(scores(1), scores(2))


def test_contrastive_agrees_with_its_formula_and_is_least_for_equal_pairs():
    loss = Contrastive(tau=0.2)
    student, teacher = scores(1), scores(2)
    rows = literal_contrastive(student, teacher, 0.2)
    assert loss(student, teacher).item() == pytest.approx(sum(rows) / ROWS, rel=1e-4)
    weight = torch.rand(ROWS)
    expected = sum(w * r for w, r in zip(weight.tolist(), rows, strict=True)) / weight.sum().item()
    assert loss(student, teacher, weight).item() == pytest.approx(expected, rel=1e-4)
    # The minimum the docstring gives, whatever the embeddings' lengths.
    unit = torch.nn.functional.normalize(teacher, dim=-1)
    others = ((unit @ unit.T - 1) / 0.2).exp().fill_diagonal_(0).sum(1)
    least = loss(3 * teacher, teacher)
    assert least.item() == pytest.approx((1 + others).log().mean().item(), rel=1e-4)
    assert least < loss(student, teacher)


def test_contrastive_holds_the_properties_of_the_others():
    loss = Contrastive()
    student, teacher, weight = scores(1).requires_grad_(), scores(2), torch.rand(ROWS)
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.shape == () and loss(student.detach() - 0.1 * gradient, teacher) < value
    order = torch.randperm(ROWS)
    assert torch.allclose(
        loss(student, teacher, weight), loss(student[order], teacher[order], weight[order])
    )
    assert loss(student.detach().half(), teacher.half()).isfinite()
    assert loss(student, teacher, torch.zeros(ROWS)) == 0
    assert loss(student[:0], teacher[:0]).item() == 0
    with pytest.raises(ConfigError, match='tau must be above 0, got 0'):
        Contrastive(tau=0)
    with pytest.raises(ConfigError, match=r'shape \(N, D\), got \(1, 7, 5\)'):
        loss(student[None], teacher[None])
