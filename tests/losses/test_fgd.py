"""FGD: against a literal transcription and the published implementation, and by its properties."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from waves import wave

from mmkd.connectors import GlobalContextConnector
from mmkd.errors import ConfigError
from mmkd.losses import FGD, MSE

PARTS = {'foreground': (1, 0, 0), 'background': (0, 1, 0), 'attention': (0, 0, 1)}


def maps(phase):
    return wave((2, 4, 6, 8), phase)


def target():
    """Boxes of 20 and 30 places that overlap in the first image, one of 18 in the second."""
    places = torch.zeros(2, 6, 8)
    places[0, 1:6, 2:8] = 1 / 30
    places[0, 0:4, 0:5] = 1 / 20
    places[1, 0:6, 0:3] = 1 / 18
    return places


def literal(student, teacher, target, alpha, beta, gamma, tau):
    images, channels, height, width = student.shape
    grid = list(product(range(height), range(width)))

    def softmax(values):
        powers = [math.exp(value / tau) for value in values]
        return [len(values) * power / sum(powers) for power in powers]

    total = 0.0
    for n in range(images):
        attention = []
        for side in (student, teacher):
            size = side[n].abs()
            of_places = softmax([sum(size[:, y, x].tolist()) / channels for y, x in grid])
            attention.append(
                (
                    dict(zip(grid, of_places, strict=True)),
                    softmax([sum(size[c].flatten().tolist()) / len(grid) for c in range(channels)]),
                )
            )
        (own_places, own_channels), (places, weights) = attention
        empty = sum(target[n, y, x].item() == 0 for y, x in grid)
        for y, x in grid:
            d = sum(
                weights[c] * (student[n, c, y, x].item() - teacher[n, c, y, x].item()) ** 2
                for c in range(channels)
            )
            share = target[n, y, x].item()
            total += places[y, x] * d * (alpha * share if share else beta / empty)
        total += gamma * sum(abs(own_places[key] - places[key]) for key in grid)
        total += gamma * sum(abs(a - b) for a, b in zip(own_channels, weights, strict=True))
    return total / images


@pytest.mark.parametrize('weights', [*PARTS.values(), (1e-3, 5e-4, 1e-3)])
@pytest.mark.parametrize('tau', [0.5, 2.0])
def test_agrees_with_its_formula(weights, tau):
    value = FGD(*weights, tau=tau)(maps(1), maps(2), target=target()).item()
    assert value == pytest.approx(literal(maps(1), maps(2), target(), *weights, tau), rel=1e-4)


# Made once with `FeatureLoss` of mmdet/distillation/losses/fgd.py of github.com/yzd-v/FGD, run on
# these maps with boxes (4, 4, 30, 20), (20, 10, 54, 36) and (0, 0, 16, 38) in images of 64 x 48.
@pytest.mark.parametrize(
    ('part', 'value'),
    [('foreground', 17.037045), ('background', 9.568984), ('attention', 27.707159)],
)
def test_agrees_with_the_published_implementation(part, value):
    loss = FGD(*PARTS[part])
    assert loss(maps(1), maps(2), target=target()).item() == pytest.approx(value, rel=1e-5)


def test_the_global_part_agrees_with_the_published_implementation():
    blocks = GlobalContextConnector(4), GlobalContextConnector(4)
    for block, side in zip(blocks, 'st', strict=True):
        for name, parameter in block.named_parameters():
            name = name.replace('attention.0', f'conv_mask_{side}')
            name = name.replace('transform.0', f'channel_add_conv_{side}')
            parameter.data = wave(parameter.shape, 0.1 + 0.1 * len(name)) * 0.3
    value = MSE(reduction='sum')(blocks[0](maps(1)), blocks[1](maps(2)))
    assert value.item() == pytest.approx(545.90186, rel=1e-5)


def test_is_zero_when_both_agree_whatever_the_labels():
    for labels in (target(), torch.zeros(2, 6, 8), torch.full((2, 6, 8), 1 / 48)):
        assert FGD()(maps(1), maps(1), target=labels).item() == 0
        assert FGD()(maps(1), maps(2), target=labels).item() > 0


def test_places_of_small_objects_count_as_much_as_large_objects():
    """Sums over a box are divided by its area; what happens outside of it is background."""
    student = maps(2).clone()
    student[1, :, 0, 7] += 3.0
    assert FGD(1, 0, 0)(student, maps(2), target=target()) == 0
    assert FGD(0, 1, 0)(student, maps(2), target=target()) > 0
    everything = torch.full((2, 6, 8), 1 / 48)
    assert FGD(1, 0, 0)(maps(1), maps(2), target=everything).item() == pytest.approx(
        FGD(0, 1, 0)(maps(1), maps(2), target=torch.zeros(2, 6, 8)).item(), rel=1e-5
    )


def test_gradient_reaches_the_student_and_lowers_the_loss():
    student = maps(1).requires_grad_()
    loss = FGD(1, 1, 1)
    (gradient,) = torch.autograd.grad(loss(student, maps(2), target=target()), student)
    lower = loss(student - 1e-3 * gradient, maps(2), target=target())
    assert lower < loss(student, maps(2), target=target())


def test_images_are_weighted_and_their_order_does_not_matter():
    loss, places = FGD(1, 1, 1), target()
    first = loss(maps(1)[:1], maps(2)[:1], target=places[:1])
    weighted = loss(maps(1), maps(2), torch.tensor([2.0, 0.0]), target=places)
    assert weighted.item() == pytest.approx(first.item(), rel=1e-5)
    swapped = loss(maps(1).flip(0), maps(2).flip(0), target=places.flip(0))
    assert swapped.item() == pytest.approx(loss(maps(1), maps(2), target=places).item(), rel=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_is_finite_in_half_precision(dtype):
    student = (maps(1) * 50).to(dtype).requires_grad_()
    value = FGD()(student, (maps(2) * 50).to(dtype), target=target())
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and student.grad.isfinite().all()


def test_what_it_cannot_compare_is_refused():
    with pytest.raises(ConfigError, match=r'FGD: values must be feature maps.*got \(7, 5\)'):
        FGD()(torch.zeros(7, 5), torch.zeros(7, 5), target=target())
    with pytest.raises(ConfigError, match='tau must be above 0, got 0'):
        FGD(tau=0)
