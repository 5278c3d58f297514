"""Every loss at the sizes it is used at: against its formula in float64, at equality, and its gradient."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mmkd.losses import (
    CWD,
    DIST,
    DKD,
    FGD,
    L1,
    MSE,
    PKD,
    AttentionTransfer,
    BoundedRegression,
    CIoU,
    Contrastive,
    GIoU,
    IoU,
    KLDivergence,
    RKDAngle,
    RKDDistance,
    SmoothL1,
    SoftLabelBCE,
    WeightedCrossEntropy,
)

FLOAT, HALF = torch.float32, torch.bfloat16

# ------------------------------------------------------------ formulas, on tensors of float64


def probabilities(scores, axis=-1):
    powers = (scores - scores.amax(axis, keepdim=True)).exp()
    return powers / powers.sum(axis, keepdim=True)


def divergence(p, q, axis=-1):
    return (p * (p / q).log()).sum(axis)


def kl(s, t, tau=2.0):
    return tau**2 * divergence(probabilities(t / tau), probabilities(s / tau)).mean()


def kl_sigmoid(s, t):
    p, q = (torch.stack([side.sigmoid(), (-side).sigmoid()], -1) for side in (t, s))
    return divergence(p, q).sum(-1).mean()


def cross_entropy(s, t):
    weight = torch.ones(s.shape[1], dtype=s.dtype)
    weight[-1] = 1.5
    return -(weight * probabilities(t) * probabilities(s).log()).sum(-1).mean()


def focal(s, t):
    p, q = t.sigmoid(), s.sigmoid()
    entropy = -p * q.log() - (1 - p) * (-s).sigmoid().log()
    return ((p - q).square() * entropy).sum(-1).mean()


def dkd(s, t, target):
    own = F.one_hot(target, s.shape[1]).bool()
    q, p = probabilities(s), probabilities(t)
    rest_q, rest_p = (side.masked_fill(own, 0).sum(-1) for side in (q, p))
    binary = divergence(torch.stack([p[own], rest_p], -1), torch.stack([q[own], rest_q], -1))
    among = [
        (side[~own].view(len(s), -1) / rest[:, None]) for side, rest in ((p, rest_p), (q, rest_q))
    ]
    return (binary + divergence(*among)).mean()


def correlation(a, b, axis):
    """1 where neither side varies beyond the rounding of float32."""
    centred = [side - side.mean(axis, keepdim=True) for side in (a, b)]
    spread = [side.square().mean(axis).clamp(min=1e-60).sqrt() for side in centred]
    varies = [part > 1e-6 * side.mean(axis) for part, side in zip(spread, (a, b), strict=True)]
    assert varies[0].equal(varies[1])
    product = centred[0].mul(centred[1]).mean(axis)
    return (product / (spread[0] * spread[1])).masked_fill(~varies[0], 1.0)


def dist(s, t):
    q, p = probabilities(s), probabilities(t)
    return 1 - correlation(q, p, 1).mean() + 1 - correlation(q, p, 0).mean()


def bounded(s, t, target):
    own, bound = ((side - target).square().sum(-1) for side in (s, t))
    return torch.where(own > bound, own, 0.0).mean()


def smooth(distance, beta=1.0):
    d = distance.abs()
    return torch.where(d < beta, d * d / (2 * beta), d - beta / 2).mean()


def unit(rows):
    return rows / rows.square().sum(-1, keepdim=True).sqrt()


def contrastive(s, t):
    return -probabilities(unit(s) @ unit(t).T / 0.07).diagonal().log().mean()


def distances(s, t):
    sides = []
    for rows in (unit(s), unit(t)):
        different = ~torch.eye(len(rows), dtype=torch.bool)
        squares = torch.stack([(rows - row).square().sum(-1) for row in rows])
        found = squares.where(different, 1.0).sqrt() * different
        sides.append(found / found[different].mean())
    return smooth(sides[0] - sides[1])


def angles(s, t):
    sides = []
    for rows in (unit(s), unit(t)):
        found = []
        for index, row in enumerate(rows):
            others = torch.cat([rows[:index], rows[index + 1 :]]) - row
            found.append((unit(others) @ unit(others).T).flatten())
        sides.append(torch.cat(found))
    # Triples in which the vertex is also an end count as 0.
    n = len(s)
    return smooth(sides[0] - sides[1]) * (n - 1) ** 2 / n**2


def overlap(s, t):
    corners = torch.minimum(s[:, 2:], t[:, 2:]) - torch.maximum(s[:, :2], t[:, :2])
    hull = torch.maximum(s[:, 2:], t[:, 2:]) - torch.minimum(s[:, :2], t[:, :2])
    shared = corners.clamp(min=0).prod(-1)
    union = (s[:, 2:] - s[:, :2]).prod(-1) + (t[:, 2:] - t[:, :2]).prod(-1) - shared
    return shared / union, union, hull


def iou(s, t):
    return -overlap(s, t)[0].clamp(min=1e-6).log().mean()


def giou(s, t):
    found, union, hull = overlap(s, t)
    return (1 - found + 1 - union / hull.prod(-1)).mean()


def ciou(s, t):
    found, _, hull = overlap(s, t)
    centres = (s[:, :2] + s[:, 2:] - t[:, :2] - t[:, 2:]) / 2
    ratio = [((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1])).atan() for b in (s, t)]
    v = 4 / math.pi**2 * (ratio[0] - ratio[1]).square()
    alpha = (v / (1 - found + v)).detach()
    return (1 - found + centres.square().sum(-1) / hull.square().sum(-1) + alpha * v).mean()


def cwd(s, t):
    return divergence(*(probabilities(side.flatten(2)) for side in (t, s))).mean()


def pkd(s, t):
    sides = []
    for side in (s, t):
        rows = side.movedim(1, -1).flatten(0, 2)
        sides.append((rows - rows.mean(0)) / rows.std(0))
    return (sides[0] - sides[1]).square().mean() / 2


def attention_transfer(s, t):
    sides = [unit(side.square().mean(1).flatten(1)) for side in (s, t)]
    return (sides[0] - sides[1]).square().mean()


def fgd(s, t, target, alpha=1e-3, beta=5e-4, gamma=1e-3, tau=0.5):
    parts = []
    for side in (s, t):
        positions = probabilities(side.abs().mean(1).flatten(1) / tau).view_as(target)
        channels = probabilities(side.abs().mean((2, 3)) / tau)
        parts.append((positions * target[0].numel(), channels * s.shape[1]))
    (own_positions, own_channels), (positions, channels) = parts
    d = positions * (channels[:, :, None, None] * (s - t).square()).sum(1)
    empty = (target == 0).double()
    background = (d * empty).sum((1, 2)) / empty.sum((1, 2))
    attention = (own_positions - positions).abs().sum((1, 2))
    attention = attention + (own_channels - channels).abs().sum(1)
    return (alpha * (d * target).sum((1, 2)) + beta * background + gamma * attention).mean()


# ------------------------------------------------------------------------------ inputs


def scores(rows, classes, background, spread):
    """Logits of a detection head: noise, and the last class higher."""
    values = torch.randn(rows, classes) * spread
    values[:, -1] += background
    return values


def values(*shape, offset=0.0, spread=1.0):
    return offset + spread * torch.randn(shape)


def maps(*shape, offset=0.0, spread=1.0):
    """Feature maps behind a ReLU."""
    return values(*shape, offset=offset, spread=spread).relu()


def boxes(rows, size, extent):
    """Two boxes of about ``size`` that overlap or not, in an image of width and height ``extent``."""
    corner = (
        torch.rand(rows, 2).mul(extent - 2 * size).repeat(2, 1) + torch.rand(2 * rows, 2) * size
    )
    found = torch.cat([corner, corner + (0.5 + torch.rand(2 * rows, 2)) * size], 1)
    return found.split(rows)


def pair(make, *arguments, **options):
    return lambda: (make(*arguments, **options), make(*arguments, **options))


SCORES = {
    '1x2': (pair(scores, 1, 2, 0, 3), FLOAT),
    '4x81, background +14': (pair(scores, 4, 81, 14, 1), FLOAT),
    '1024x81, background +10': (pair(scores, 1024, 81, 10, 1), FLOAT),
    '1024x81, background +14': (pair(scores, 1024, 81, 14, 1), FLOAT),
    '1024x81, background +30': (pair(scores, 1024, 81, 30, 1), HALF),
    '1024x81, flat': (pair(scores, 1024, 81, 0, 1e-2), FLOAT),
    '1024x81, flat, half': (pair(scores, 1024, 81, 0, 1e-2), HALF),
    '4096x81, other class +30': (pair(scores, 4096, 81, -30, 3), FLOAT),
    '64x1203': (pair(scores, 64, 1203, 20, 3), HALF),
    '4096x1203': (pair(scores, 4096, 1203, 12, 1), FLOAT),
}
COLUMN = {
    '4096x1': (pair(scores, 4096, 1, -10, 3), FLOAT),
    '4096x1, half': (pair(scores, 4096, 1, 10, 3), HALF),
}
ROWS = {
    '1x4': (pair(values, 1, 4), FLOAT),
    '4096x4': (pair(values, 4096, 4, spread=0.1), HALF),
    '512x1024': (pair(values, 512, 1024, offset=3.0), FLOAT),
}
RELATIONS = {
    '3x2': (pair(values, 3, 2), FLOAT),
    '40x512': (pair(values, 40, 512, offset=3.0), HALF),
}
MANY = {'2048x32': (pair(values, 2048, 32), FLOAT)}
MAPS = {
    '1x1': (pair(maps, 3, 64, 1, 1, offset=5.0), FLOAT),
    '13x21': (pair(maps, 2, 256, 13, 21), HALF),
    '200x200': (pair(maps, 2, 16, 200, 200), FLOAT),
    '200x200, half': (pair(maps, 2, 16, 200, 200, spread=10.0), HALF),
    '50x84, small': (pair(maps, 1, 32, 50, 84, spread=1e-2), FLOAT),
    '50x84, nearly constant': (pair(maps, 1, 32, 50, 84, offset=5.0, spread=1e-2), FLOAT),
}
BOXES = {
    '1, pixels': (lambda: boxes(1, 100.0, 1333.0), FLOAT),
    '4096, pixels': (lambda: boxes(4096, 100.0, 1333.0), FLOAT),
    '4096, pixels, half': (lambda: boxes(4096, 100.0, 1333.0), HALF),
    '4096, fractions': (lambda: boxes(4096, 0.2, 1.0), FLOAT),
    # Coordinates near 1 would have three digits left of such a box.
    '4096, fractions of one pixel': (lambda: boxes(4096, 8e-4, 2e-3), FLOAT),
}


def labelled(labels, *losses):
    """Each loss or formula with the labels it needs, which follow from the teacher's side."""
    return [lambda s, t, loss=loss: loss(s, t, target=labels(t)) for loss in losses]


def classes_of(teacher):
    return torch.arange(len(teacher)) % teacher.shape[1]


def predicted_boxes(teacher):
    return teacher.sign() * 2


def foreground_of(teacher):
    target = torch.zeros_like(teacher[:, 0].float())
    if target[0].numel() > 1:
        target[:, :5, :8] = 1 / 40
    return target


#: Loss, formula, inputs, and whether the minimum is 0.
LOSSES = {
    'KLDivergence': (KLDivergence(tau=2.0), kl, SCORES, True),
    'KLDivergence sigmoid': (KLDivergence(activation='sigmoid'), kl_sigmoid, SCORES | COLUMN, True),
    'WeightedCrossEntropy': (WeightedCrossEntropy(), cross_entropy, SCORES, False),
    'DKD': (*labelled(classes_of, DKD(), dkd), SCORES, True),
    'DIST': (DIST(), dist, SCORES, True),
    'SoftLabelBCE': (SoftLabelBCE(), focal, SCORES | COLUMN, True),
    'MSE': (MSE(), lambda s, t: (s - t).square().mean(), ROWS | MAPS, True),
    'MSE sum': (MSE('sum'), lambda s, t: (s - t).square().sum() / len(s), ROWS | MAPS, True),
    'L1': (L1(), lambda s, t: (s - t).abs().mean(), ROWS | MAPS, True),
    'SmoothL1': (SmoothL1(0.5), lambda s, t: smooth(s - t, 0.5), ROWS | MAPS, True),
    'BoundedRegression': (*labelled(predicted_boxes, BoundedRegression(), bounded), ROWS, True),
    'Contrastive': (Contrastive(), contrastive, ROWS | MANY, False),
    'RKDDistance': (RKDDistance(), distances, RELATIONS | MANY, True),
    'RKDAngle': (RKDAngle(), angles, RELATIONS, True),
    'IoU': (IoU(), iou, BOXES, True),
    'GIoU': (GIoU(), giou, BOXES, True),
    'CIoU': (CIoU(), ciou, BOXES, True),
    'CWD': (CWD(), cwd, MAPS, True),
    'PKD': (PKD(), pkd, MAPS, True),
    'AttentionTransfer': (AttentionTransfer(), attention_transfer, MAPS, True),
    'FGD': (*labelled(foreground_of, FGD(), fgd), MAPS, True),
    'FGD weights': (
        *labelled(
            foreground_of, FGD(1, 2, 3, tau=2.0), partial(fgd, alpha=1, beta=2, gamma=3, tau=2.0)
        ),
        *(MAPS, True),
    ),
}
CASES = [
    pytest.param(loss, formula, *each, zero, id=f'{name}, {size}')
    for name, (loss, formula, inputs, zero) in LOSSES.items()
    for size, each in inputs.items()
]


def gradient(loss, student, teacher):
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    return value.detach(), torch.autograd.grad(value, student)[0]


@pytest.mark.parametrize(('loss', 'formula', 'make', 'dtype', 'zero'), CASES)
def test_agrees_with_its_formula_and_is_zero_at_equality(loss, formula, make, dtype, zero):
    torch.manual_seed(0)
    student, teacher = (side.to(dtype) for side in make())
    value, slope = gradient(loss, student, teacher)
    expected, expected_slope = gradient(formula, student.double(), teacher.double())
    assert value.dtype == FLOAT
    assert value.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-7)
    # A gradient comes back in the dtype of the input.
    error = (slope.double() - expected_slope).norm()
    assert error <= (1e-2 if dtype == HALF else 1e-3) * expected_slope.norm() + 1e-9
    value, slope = gradient(loss, teacher, teacher)
    assert slope.isfinite().all()
    if zero:
        assert abs(value.item()) < 1e-5


CONSTANT = {
    'scores': lambda: torch.zeros(1024, 81),
    'confident scores': lambda: scores(1, 81, 30, 1).expand(1024, 81),
    'impossible classes': lambda: torch.tensor([[0.0, -1e4, 0.0]]).expand(64, 3),
    'maps': lambda: torch.zeros(2, 8, 25, 42),
    'far maps': lambda: torch.full((2, 8, 25, 42), 100.0),
    'points': lambda: torch.full((64, 2), 0.3).repeat(1, 2),
}
KINDS = {
    'scores': (SCORES, ('scores', 'confident scores', 'impossible classes')),
    'maps': (MAPS, ('maps', 'far maps')),
    'boxes': (BOXES, ('points',)),
}
CONSTANT_CASES = [
    pytest.param(loss, CONSTANT[kind], zero and kind != 'points', id=f'{name}, {kind}')
    for name, (loss, _, inputs, zero) in LOSSES.items()
    for sizes, kinds in KINDS.values()
    if sizes.items() <= inputs.items()
    for kind in kinds
]


@pytest.mark.parametrize('dtype', [FLOAT, HALF])
@pytest.mark.parametrize(('loss', 'make', 'zero'), CONSTANT_CASES)
def test_constants_are_finite_on_either_side(loss, make, zero, dtype):
    """No row, class, channel or box has a spread; two points have no overlap that is defined."""
    torch.manual_seed(0)
    constant = make().to(dtype)
    varied = (constant + torch.rand(constant.shape)).to(dtype)
    if make is CONSTANT['points']:
        varied[:, 2:] += 1
    for student, teacher in ((constant, varied), (varied, constant), (constant, constant)):
        value, slope = gradient(loss, student, teacher)
        assert value.isfinite() and slope.isfinite().all()
    if zero:
        assert value.abs() < (1e-4 if dtype == HALF else 1e-6)


def test_what_varies_on_one_side_only_counts_as_not_correlated():
    torch.manual_seed(0)
    flat, varied = torch.zeros(1024, 81), scores(1024, 81, 14, 1)
    for student, teacher in ((flat, varied), (varied, flat)):
        value, slope = gradient(DIST(), student, teacher)
        assert value == pytest.approx(2.0) and slope.abs().max() < 1e-6


@pytest.mark.parametrize('background', [10.0, 12.0, 14.0])
@pytest.mark.parametrize('rows', [4, 1024, 4096])
def test_improbable_classes_correlate_with_themselves(rows, background):
    """And not with others, however improbable all foreground classes are."""
    torch.manual_seed(0)
    teacher, other = (scores(rows, 81, background, 1) for _ in range(2))
    assert DIST(beta=0)(teacher, teacher).item() == pytest.approx(0.0, abs=1e-4)
    near = DIST(beta=0)(teacher + 0.1 * torch.randn_like(teacher), teacher)
    assert near < 0.1 * DIST(beta=0)(other, teacher)
