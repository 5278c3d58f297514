"""Losses after papers: against literal transcriptions, published implementations, and by property."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from waves import rows, wave

from mmkd.errors import ConfigError
from mmkd.losses import (
    CWD,
    DIST,
    DKD,
    PKD,
    AttentionTransfer,
    CIoU,
    KLDivergence,
    RKDAngle,
    RKDDistance,
    SoftLabelBCE,
)


def maps(phase):
    return wave((2, 3, 4, 5), phase)


def boxes(phase):
    corner, size = (wave((7, 2), phase + shift) / 12 + 0.3 for shift in (0.0, 0.4))
    return torch.cat([corner, corner + size], 1)


# ---------------------------------------------------------------------- literal transcriptions


def literal_pkd(student, teacher):
    images, channels, height, width = student.shape
    places = list(product(range(images), range(height), range(width)))

    def standardised(side):
        out = {}
        for c in range(channels):
            values = [side[n, c, y, x].item() for n, y, x in places]
            mean = sum(values) / len(values)
            std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
            out.update({(n, c, y, x): (side[n, c, y, x].item() - mean) / std for n, y, x in places})
        return out

    s, t = standardised(student), standardised(teacher)
    return sum((s[key] - t[key]) ** 2 for key in s) / (2 * len(s))


def literal_cwd(tau):
    def loss(student, teacher):
        images, channels, height, width = student.shape
        total = 0.0
        for n, c in product(range(images), range(channels)):
            s, t = (side[n, c].flatten().tolist() for side in (student, teacher))
            q, p = ([math.exp(v / tau) for v in side] for side in (s, t))
            q, p = ([v / sum(side) for v in side] for side in (q, p))
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        return tau**2 * total / (images * channels)

    return loss


def literal_attention(student, teacher):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        sides = []
        for side in (s, t):
            attention = [
                sum(v * v for v in side[:, y, x].tolist()) / len(side)
                for y, x in product(range(side.shape[1]), range(side.shape[2]))
            ]
            norm = math.sqrt(sum(v * v for v in attention))
            sides.append([v / norm for v in attention])
        total += sum((a - b) ** 2 for a, b in zip(*sides, strict=True)) / len(sides[0])
    return total / len(student)


def correlation(a, b, weight):
    share = [w / sum(weight) for w in weight]
    means = [sum(w * v for w, v in zip(share, side, strict=True)) for side in (a, b)]
    a, b = ([v - mean for v in side] for side, mean in zip((a, b), means, strict=True))
    up = sum(w * x * y for w, x, y in zip(share, a, b, strict=True))
    down = [sum(w * v * v for w, v in zip(share, side, strict=True)) for side in (a, b)]
    return up / math.sqrt(down[0] * down[1])


def literal_dist(beta, gamma, tau):
    def loss(student, teacher, weight=None):
        q, p = ((side / tau).softmax(-1).tolist() for side in (student, teacher))
        weight = [1.0] * len(q) if weight is None else weight.tolist()
        flat = [1.0] * len(q[0])
        inter = sum(
            w * (1 - correlation(a, b, flat)) for w, a, b in zip(weight, q, p, strict=True)
        ) / sum(weight)
        classes = list(zip(zip(*q, strict=True), zip(*p, strict=True), strict=True))
        intra = sum(1 - correlation(a, b, weight) for a, b in classes) / len(classes)
        return tau**2 * (beta * inter + gamma * intra)

    return loss


def smooth(value):
    return value * value / 2 if abs(value) < 1 else abs(value) - 0.5


def unit(row):
    norm = math.sqrt(sum(v * v for v in row))
    return [v / norm for v in row]


def literal_distances(student, teacher):
    sides = []
    for side in (student, teacher):
        entries = [unit(row) for row in side.tolist()]
        table = {
            (i, j): math.dist(a, b) for i, a in enumerate(entries) for j, b in enumerate(entries)
        }
        mean = sum(table.values()) / sum(i != j for i, j in table)
        sides.append({key: value / mean for key, value in table.items()})
    return sum(smooth(sides[0][key] - sides[1][key]) for key in sides[0]) / len(sides[0])


def literal_angles(student, teacher):
    sides = []
    for side in (student, teacher):
        entries = [unit(row) for row in side.tolist()]
        table = {}
        for i, j, k in product(range(len(entries)), repeat=3):
            if j in (i, k):
                table[i, j, k] = 0.0
                continue
            one, other = (
                unit([a - b for a, b in zip(entries[end], entries[j], strict=True)])
                for end in (i, k)
            )
            table[i, j, k] = sum(a * b for a, b in zip(one, other, strict=True))
        sides.append(table)
    return sum(smooth(sides[0][key] - sides[1][key]) for key in sides[0]) / len(sides[0])


def literal_ciou(student, teacher):
    total = 0.0
    for (ax, ay, aX, aY), (bx, by, bX, bY) in zip(student.tolist(), teacher.tolist(), strict=True):
        inter = max(0, min(aX, bX) - max(ax, bx)) * max(0, min(aY, bY) - max(ay, by))
        iou = inter / ((aX - ax) * (aY - ay) + (bX - bx) * (bY - by) - inter)
        diagonal = (max(aX, bX) - min(ax, bx)) ** 2 + (max(aY, bY) - min(ay, by)) ** 2
        centre = ((ax + aX - bx - bX) / 2) ** 2 + ((ay + aY - by - bY) / 2) ** 2
        v = (
            4
            / math.pi**2
            * (math.atan((bX - bx) / (bY - by)) - math.atan((aX - ax) / (aY - ay))) ** 2
        )
        alpha = v / (1 - iou + v) if v else 0.0
        total += 1 - iou + centre / diagonal + alpha * v
    return total / len(student)


TARGET = torch.tensor([0, 4, 2, 1, 3, 4, 0])


def literal_dkd(alpha, beta, tau):
    def loss(student, teacher):
        total = 0.0
        for s, t, y in zip(student.tolist(), teacher.tolist(), TARGET.tolist(), strict=True):
            q, p = ([math.exp(v / tau) for v in side] for side in (s, t))
            q, p = ([v / sum(side) for v in side] for side in (q, p))
            own = p[y] * math.log(p[y] / q[y])
            own += (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
            others = 0.0
            for c in range(len(p)):
                if c != y:
                    a, b = p[c] / (1 - p[y]), q[c] / (1 - q[y])
                    others += a * math.log(a / b)
            total += alpha * own + beta * others
        return tau**2 * total / len(student)

    return loss


def literal_soft_labels(beta):
    def loss(student, teacher):
        total = 0.0
        for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
            q, p = 1 / (1 + math.exp(-s)), 1 / (1 + math.exp(-t))
            total -= abs(p - q) ** beta * (p * math.log(q) + (1 - p) * math.log(1 - q))
        return total / len(student)

    return loss


class TargetDKD(DKD):
    """With the target that the tests have; rows in another order are another test."""

    needs_target = False

    def forward(self, student, teacher, weight=None):
        return super().forward(student, teacher, weight, target=TARGET[: len(student)])


CASES = {
    'dkd': (TargetDKD(), rows, literal_dkd(1.0, 1.0, 1.0)),
    'dkd-tau': (TargetDKD(alpha=0.5, beta=4.0, tau=2.0), rows, literal_dkd(0.5, 4.0, 2.0)),
    'soft-labels': (SoftLabelBCE(), rows, literal_soft_labels(2.0)),
    'pkd': (PKD(), maps, literal_pkd),
    'cwd': (CWD(), maps, literal_cwd(1.0)),
    'cwd-tau': (CWD(tau=4.0), maps, literal_cwd(4.0)),
    'attention': (AttentionTransfer(), maps, literal_attention),
    'dist': (DIST(), rows, literal_dist(1.0, 1.0, 1.0)),
    'dist-tau': (DIST(beta=2.0, gamma=0.5, tau=3.0), rows, literal_dist(2.0, 0.5, 3.0)),
    'rkd-distance': (RKDDistance(), rows, literal_distances),
    'rkd-angle': (RKDAngle(), rows, literal_angles),
    'ciou': (CIoU(), boxes, literal_ciou),
}
every_loss = pytest.mark.parametrize('loss, make, literal', CASES.values(), ids=CASES)


@every_loss
def test_agrees_with_its_formula(loss, make, literal):
    assert loss(make(1.0), make(2.0)).item() == pytest.approx(
        literal(make(1.0), make(2.0)), rel=1e-4
    )


# Made once by the losses of mmrazor 1.0.0 (its files run by themselves, its registry left out, as the
# package needs an older mmcv) on wave(shape, 1) for the student and wave(shape, 2) for the teacher, in
# float64 and with loss_weight=1.
PUBLISHED = [
    (PKD(), maps, 0.5241171850749358),
    (CWD(), maps, 0.9347286694914713),
    (CWD(tau=4.0), maps, 1.20110895587062),
    (AttentionTransfer(), maps, 0.01926085190317514),
    (RKDDistance(), rows, 0.019144477523424557),
    (RKDDistance(normalize=False), rows, 0.05923471619920809),
    (RKDAngle(), rows, 0.03144111341873569),
    (DIST(), rows, 1.2530967047824677),
    (DIST(beta=2.0, gamma=0.5, tau=3.0), rows, 12.172071960852179),
    (TargetDKD(), rows, 0.570052341733302),
    (TargetDKD(alpha=0.5, beta=4.0, tau=2.0), rows, 1.966213334124397),
]


@pytest.mark.parametrize(('loss', 'make', 'value'), PUBLISHED)
def test_agrees_with_the_published_implementation(loss, make, value):
    assert loss(make(1.0), make(2.0)).item() == pytest.approx(value, rel=1e-4)


def test_the_plain_divergence_agrees_with_the_published_implementation():
    """mmrazor's reduction is the mean over rows too."""
    value = KLDivergence(tau=3.0)(rows(1.0), rows(2.0)).item()
    assert value == pytest.approx(0.6269585584839679, rel=1e-4)


# ---------------------------------------------------------------------- properties


@every_loss
def test_is_zero_when_both_agree_and_positive_otherwise(loss, make, literal):
    assert loss(make(1.0), make(1.0)).item() == pytest.approx(0.0, abs=1e-5)
    assert loss(make(1.0), make(2.0)).item() > 1e-3


@every_loss
def test_gradient_reaches_the_student_alone_and_lowers_the_loss(loss, make, literal):
    student, teacher = make(1.0).requires_grad_(), make(2.0)
    value = loss(student, teacher)
    assert value.shape == () and value.dtype is torch.float32
    (gradient,) = torch.autograd.grad(value, student)
    step = 1e-2 / gradient.norm()
    assert loss(student.detach() - step * gradient, teacher) < value


@every_loss
def test_does_not_depend_on_the_order_of_the_batch(loss, make, literal):
    if isinstance(loss, DKD):
        return  # see below
    student, teacher = make(1.0), make(2.0)
    order = torch.randperm(len(student))
    weight = torch.rand(len(student)) + 0.1
    assert torch.allclose(
        loss(student, teacher, weight),
        loss(student[order], teacher[order], weight[order]),
        rtol=1e-4,
    )


@every_loss
def test_entries_without_weight_do_not_count(loss, make, literal):
    """Whatever they hold; and with none that counts the loss and its gradient are 0."""
    student, teacher = make(1.0), make(2.0)
    if loss.__class__ is PKD:  # which standardises over all images
        return
    keep = torch.ones(len(student))
    keep[1] = 0
    other = student.clone()
    other[1] = other[1] + 5 if make is not boxes else torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert torch.allclose(loss(student, teacher, keep), loss(other, teacher, keep), rtol=1e-4)
    student.requires_grad_()
    value = loss(student, teacher, torch.zeros(len(student)))
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == 0 and gradient.abs().sum() == 0


@every_loss
def test_weights_that_are_equal_change_nothing(loss, make, literal):
    student, teacher = make(1.0), make(2.0)
    weighted = loss(student, teacher, torch.full((len(student),), 0.3))
    assert torch.allclose(weighted, loss(student, teacher), rtol=1e-4)


def test_relations_are_weighted_row_by_row():
    weight = torch.tensor([0.2, 1.0, 0.5, 0.0, 2.0, 1.0, 0.25])
    expected = literal_dist(1.0, 1.0, 1.0)(rows(1.0), rows(2.0), weight)
    assert DIST()(rows(1.0), rows(2.0), weight).item() == pytest.approx(expected, rel=1e-4)


@every_loss
def test_is_finite_in_half_precision_and_for_constants(loss, make, literal):
    for student, teacher in (
        (make(1.0).half(), make(2.0).half()),
        (make(1.0) * 0 + 0.5, make(2.0)),
        (make(1.0), make(2.0) * 0 + 0.5),
    ):
        student.requires_grad_()
        value = loss(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize(
    ('size', 'constant'),
    [((2, 3, 4, 5), None), ((1, 3, 1, 1), None), ((2, 3, 4, 5), 'teacher'), ((2, 3, 4, 5), 'both')],
)
def test_the_gradient_of_pkd_is_that_of_its_formula(size, constant):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(size, generator=generator) + 5 for _ in range(2))
    if constant:
        teacher[:, 1] = 7
    if constant == 'both':
        student[:, 1] = 3
    ours, plain = (student.clone().requires_grad_() for _ in range(2))
    values = [PKD()(ours, teacher), PKD()(plain, teacher, torch.ones(size[0]))]
    assert torch.allclose(*values, atol=1e-6)
    for value in values:
        (value * 3).backward()
    assert torch.allclose(ours.grad, plain.grad, atol=1e-5, rtol=1e-3)


def test_magnitudes_of_channels_do_not_matter_to_pkd():
    scale = torch.tensor([0.1, 5.0, 100.0])[:, None, None]
    student, teacher = maps(1.0), maps(2.0)
    assert torch.allclose(PKD()(scale * student + 3, teacher), PKD()(student, teacher), rtol=1e-3)


@pytest.mark.parametrize(
    ('loss', 'message'),
    [
        (PKD(), 'PKD: values must be feature maps'),
        (CWD(), 'CWD: values must be feature maps'),
        (AttentionTransfer(), 'AttentionTransfer: values must be feature maps'),
        (CIoU(), 'CIoU: values must be boxes'),
    ],
)
def test_other_shapes_are_refused(loss, message):
    with pytest.raises(ConfigError, match=message):
        loss(rows(1.0), rows(2.0))


def test_options_are_checked():
    for make, message in (
        (lambda: CWD(tau=0), 'tau must be above 0, got 0'),
        (lambda: DIST(tau=-1), 'tau must be above 0, got -1'),
        (lambda: AttentionTransfer(p=0), 'p must be above 0, got 0'),
        (lambda: DIST()(maps(1.0), maps(2.0)), r'shape \(N, C\)'),
        (lambda: RKDDistance()(rows(1.0), rows(2.0)[:3]), 'the same number of rows, got 7 and 3'),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


def test_dkd_does_not_depend_on_the_order_of_the_batch():
    order = torch.randperm(7)
    plain = DKD()(rows(1.0), rows(2.0), target=TARGET)
    mixed = DKD()(rows(1.0)[order], rows(2.0)[order], target=TARGET[order])
    assert torch.allclose(plain, mixed)


def test_dkd_is_the_plain_divergence_with_the_papers_weights():
    """alpha = 1 and beta = 1 - p of the target, row by row (the paper's first result)."""
    for index in range(7):
        student, teacher, target = rows(1.0)[[index]], rows(2.0)[[index]], TARGET[[index]]
        p = teacher.softmax(-1)[0, target[0]].item()
        apart = DKD(alpha=1.0, beta=1 - p)(student, teacher, target=target)
        assert torch.allclose(apart, KLDivergence()(student, teacher), rtol=1e-4)


def test_plain_soft_labels_are_least_where_both_agree():
    loss, teacher = SoftLabelBCE(beta=0), rows(2.0)
    student = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, teacher), student)
    assert gradient.abs().max() < 1e-6 and loss(teacher, teacher) > 0
    assert loss(rows(1.0), teacher) > loss(teacher, teacher)
