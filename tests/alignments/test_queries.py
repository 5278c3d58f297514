"""mmkd/alignments/queries.py."""

from __future__ import annotations

import itertools

import pytest
import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from tiny_transformers import transformer

from mmkd.alignments import ClassMap, Step
from mmkd.alignments.queries import HEAD
from mmkd.distillers import LossEntry
from mmkd.errors import ConfigError
from mmkd.families.class_scores import scores_for_sigmoid

CLASSES = ('cat', 'dog', 'person')
EIGHTY = tuple(f'class {i}' for i in range(5)) + CLASSES


@pytest.fixture(scope='module')
def models():
    """One model of each head and shape the tests ask for."""
    made = {}

    def model(kind='DETR', **options):
        key = (kind, tuple(options.items()))
        if key not in made:
            made[key] = MODELS.build(transformer(kind, **options))
        return made[key]

    return model


def align(kind='HungarianQueryAlignment', **options):
    return TASK_UTILS.build(dict(type=kind, **options))


def outputs(layers=2, images=3, queries=8, width=4, seed=0, spread=2.0):
    """What a head of random queries gives: scores and boxes."""
    random = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(layers, images, queries, width, generator=random)
    return scores, torch.rand(layers, images, queries, 4, generator=random) * 0.5 + 0.2


def make_step(student, teacher, ours, theirs, classes=CLASSES, their_classes=CLASSES, **options):
    return Step(
        data_samples=[],
        student=student,
        teacher=teacher,
        student_record={HEAD: ours},
        teacher_record={HEAD: theirs},
        class_map=ClassMap(classes, their_classes, **options),
    )


def pair_up(alignment, step):
    alignment.check(step.student, step.teacher, {})
    return alignment(step.student_record[HEAD], step.teacher_record[HEAD], step)


# ------------------------------------------------------------------------------ matching


def test_a_student_that_says_the_same_in_another_order_is_recognised(models):
    model = models()
    scores, boxes = outputs()
    order = torch.stack([torch.randperm(8) for _ in range(6)]).reshape(2, 3, 8)
    ours = tuple(value.gather(2, order[..., None].expand_as(value)) for value in (scores, boxes))
    step = make_step(model, model, ours, (scores, boxes))
    for of in ('class', 'box'):
        (pair,) = pair_up(align(of=of), step)
        assert torch.equal(pair.student, pair.teacher)
    plain = pair_up(align('IndexQueryAlignment'), step)[0]
    assert not torch.allclose(plain.student, plain.teacher)


def test_matching_is_the_cheapest_of_all(models):
    """Against every permutation, costs added up one by one."""
    model = models(queries=4)
    ours, theirs = outputs(queries=4), outputs(queries=4, seed=1)
    alignment = align(cost_class=1.5, cost_l1=3.0, cost_giou=0.5)
    step = make_step(model, model, ours, theirs)
    alignment.check(model, model, {})
    found, order = alignment.pairing(step)
    assert torch.equal(order, torch.arange(4).expand(2, 3, 4))
    for layer, image in itertools.product(range(2), range(3)):
        p, q = (side[0][layer, image].softmax(-1) for side in (theirs, ours))
        cost = torch.zeros(4, 4)
        for t, s in itertools.product(range(4), range(4)):
            a, b = (side[1][layer, image, i] for side, i in ((theirs, t), (ours, s)))
            corners = bbox_cxcywh_to_xyxy(torch.stack([a, b]))
            giou = bbox_overlaps(corners[:1], corners[1:], mode='giou')[0, 0]
            foreground = p[t, :-1].max()
            weight = foreground + 0.1 * (1 - foreground)
            agreement = sum(p[t, c] * q[s, c] for c in range(4))
            cost[t, s] = weight * (-1.5 * agreement + 3.0 * (a - b).abs().sum() + 0.5 * (1 - giou))
        best = min(
            itertools.permutations(range(4)), key=lambda o: sum(cost[t, o[t]] for t in range(4))
        )
        assert found[layer, image].tolist() == list(best)


def test_the_costs_of_a_step_are_handed_over_once(models, monkeypatch):
    """Not once a layer, an image or a loss."""
    model = models()
    step = make_step(model, model, outputs(images=5), outputs(images=5, seed=1))
    handed = []
    whole = torch.Tensor.cpu
    monkeypatch.setattr(
        torch.Tensor, 'cpu', lambda self: (handed.append(self.shape), whole(self))[1]
    )
    for options in (dict(), dict(of='box'), dict(of='box', box_format='xyxy')):
        pair_up(align(**options), step)
    assert handed == [(2, 5, 8, 8)]
    pair_up(align(cost_class=2.0), step)  # another matching
    assert len(handed) == 2


@pytest.mark.parametrize(('student', 'teacher'), [(5, 9), (9, 5)])
def test_unequal_numbers_of_queries(models, student, teacher):
    """The more confident of the teacher's are taken; the student's that are left over have no pair."""
    a, b = models(queries=student), models(queries=teacher)
    ours, theirs = outputs(queries=student), outputs(queries=teacher, seed=1)
    step = make_step(a, b, ours, theirs)
    alignment = align()
    (pair,) = pair_up(alignment, step)
    assert pair.student.shape == (2 * 3 * 5, 4)
    mine, chosen = alignment.pairing(step)
    for layer, image in itertools.product(range(2), range(3)):
        confidence = theirs[0][layer, image].softmax(-1)[:, :-1].amax(-1)
        assert set(chosen[layer, image].tolist()) == set(confidence.topk(5).indices.tolist())
        assert len(set(mine[layer, image].tolist())) == 5
    limited = align(num_queries=2)
    assert pair_up(limited, step)[0].student.shape == (2 * 3 * 2, 4)


def test_only_the_last_queries_of_a_student_that_denoises_are_matched(models):
    model = models('DINO')
    scores, boxes = outputs(width=3)
    noise = torch.full((2, 3, 6, 3), 50.0), torch.full((2, 3, 6, 4), 0.5)
    ours = tuple(torch.cat(pair, 2) for pair in zip(noise, (scores, boxes), strict=True))
    step = make_step(model, model, ours, (scores, boxes))
    (pair,) = pair_up(align(), step)
    assert torch.equal(pair.student, pair.teacher)


def test_predictions_that_are_no_numbers_are_blamed_on_their_model(models):
    model, broken = models(), outputs()
    broken[1][0, 0, 0] = float('nan')
    step = make_step(model, model, broken, outputs())
    with pytest.raises(ConfigError, match="student's predictions.*diverged"):
        pair_up(align(), step)
    step = make_step(model, model, outputs(), broken)
    with pytest.raises(ConfigError, match="teacher's predictions.*checkpoint"):
        pair_up(align(), step)


# ------------------------------------------------------------------------------ classes


def test_eighty_classes_are_brought_to_two(models):
    """Softmax: what the teacher gives to the others is no-object."""
    student, teacher = models(classes=2), models(classes=8)
    theirs = outputs(width=9)
    step = make_step(student, teacher, outputs(width=3), theirs, ('person', 'dog'), EIGHTY)
    (pair,) = pair_up(align('IndexQueryAlignment'), step)
    p = theirs[0].softmax(-1).flatten(0, 2)
    wanted = torch.stack([p[:, 7], p[:, 6], p[:, :6].sum(-1) + p[:, 8]], -1)
    torch.testing.assert_close(pair.teacher.softmax(-1), wanted)
    assert pair.student.shape == (48, 3)


def test_a_softmax_is_compared_with_a_sigmoid_by_the_probability_of_each_class(models):
    softmax, sigmoid = models(), models('DeformableDETR')
    ours, theirs = outputs(width=4), outputs(width=3, seed=1)
    alignment = align('IndexQueryAlignment')
    (pair,) = pair_up(alignment, make_step(softmax, sigmoid, ours, theirs))
    assert alignment.activation == 'sigmoid'
    assert torch.equal(pair.teacher, theirs[0].flatten(0, 2))
    torch.testing.assert_close(pair.student.sigmoid(), ours[0].softmax(-1)[..., :-1].flatten(0, 2))
    (pair,) = pair_up(alignment, make_step(sigmoid, softmax, theirs, ours))
    torch.testing.assert_close(pair.teacher.sigmoid(), ours[0].softmax(-1)[..., :-1].flatten(0, 2))


def test_scores_for_a_sigmoid_stay_finite_where_a_softmax_is_certain():
    scores = torch.tensor([[60.0, -60.0, -60.0], [-60.0, -60.0, 60.0]], requires_grad=True)
    converted = scores_for_sigmoid(scores)
    converted.sum().backward()
    assert converted.isfinite().all() and scores.grad.isfinite().all()


# ------------------------------------------------------------------------------ weights and layers


def test_queries_count_by_the_teachers_confidence(models):
    model, theirs = models(), outputs(seed=1)
    step = make_step(model, model, outputs(), theirs)
    foreground = theirs[0].softmax(-1)[..., :-1].amax(-1).flatten()
    for options, floor in (
        (dict(), 0.1),
        (dict(of='box'), 0.0),
        (dict(no_object_weight=0.5), 0.5),
    ):
        (pair,) = pair_up(align('IndexQueryAlignment', **options), step)
        torch.testing.assert_close(pair.weight, foreground + floor * (1 - foreground))
    assert pair_up(align('IndexQueryAlignment', no_object_weight=1), step)[0].weight is None


def test_weights_follow_their_queries_through_the_matching(models):
    a, b = models(queries=5), models(queries=9)
    ours, theirs = outputs(queries=5), outputs(queries=9, seed=1)
    (pair,) = pair_up(align(no_object_weight=0), make_step(a, b, ours, theirs))
    torch.testing.assert_close(pair.weight, pair.teacher.softmax(-1)[:, :-1].amax(-1))


def test_classes_the_student_lacks_do_not_make_a_query_count(models):
    student, teacher = models(classes=2), models(classes=8)
    theirs = outputs(width=9)
    theirs[0][..., 0] += 50  # a class of no interest
    step = make_step(student, teacher, outputs(width=3), theirs, ('person', 'dog'), EIGHTY)
    (pair,) = pair_up(align('IndexQueryAlignment', of='box'), step)
    assert pair.weight.max() < 1e-6


def test_chosen_layers_are_compared(models):
    a, b = models(layers=(1, 3)), models(layers=(1, 2))
    ours, theirs = outputs(layers=3), outputs(layers=2, seed=1)
    step = make_step(a, b, ours, theirs)
    (pair,) = pair_up(align('IndexQueryAlignment', layers='last'), step)
    assert torch.equal(pair.student, ours[0][-1].flatten(0, 1))
    assert torch.equal(pair.teacher, theirs[0][-1].flatten(0, 1))
    (pair,) = pair_up(align('IndexQueryAlignment', layers=[[0, 1]]), step)
    assert torch.equal(pair.student, ours[0][0].flatten(0, 1))
    assert torch.equal(pair.teacher, theirs[0][1].flatten(0, 1))


# ------------------------------------------------------------------------------ forms and errors


def test_boxes_come_in_either_form(models):
    model, ours, theirs = models(), outputs(), outputs(seed=1)
    step = make_step(model, model, ours, theirs)
    (pair,) = pair_up(align('IndexQueryAlignment', of='box'), step)
    assert torch.equal(pair.student, ours[1].flatten(0, 2))
    (pair,) = pair_up(align('IndexQueryAlignment', of='box', box_format='xyxy'), step)
    assert torch.equal(pair.teacher, bbox_cxcywh_to_xyxy(theirs[1]).flatten(0, 2))


def test_embeddings_are_paired_layer_by_layer(models):
    model = models()
    step = make_step(model, model, outputs(), outputs(seed=1))
    alignment = align(of='embedding')
    alignment.check(model, model, {})
    ours, theirs = torch.rand(2, 3, 8, 32), torch.rand(2, 3, 8, 32)
    pairs = alignment(ours, theirs, step)
    assert [pair.student.shape for pair in pairs] == [(24, 32)] * 2
    with pytest.raises(ConfigError, match="LinearConnector', in_channels=16, out_channels=32"):
        alignment(ours[..., :16], theirs, step)
    with pytest.raises(ConfigError, match="must have the shape .*capture='input', index=0"):
        alignment((ours, ours), theirs, step)


def test_a_head_module_may_be_named_instead_of_the_head(models):
    """A tensor of all layers, or one a layer of branches that are shared."""
    model, ours, theirs = models(), outputs(), outputs(seed=1)
    step = make_step(model, model, ours, theirs)
    alignment = align('IndexQueryAlignment')
    alignment.check(model, model, {})
    (whole,) = alignment(ours, theirs, step)
    (tensor,) = alignment(ours[0], list(theirs[0]), step)
    assert torch.equal(whole.student, tensor.student)
    assert torch.equal(whole.teacher, tensor.teacher)


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (
            torch.rand(3, 8, 4),
            r'student: .*must have the shape .* with 2 decoder layers, got \(3, 8, 4\); record bbox_head',
        ),
        (torch.rand(1, 3, 8, 4), r'2 decoder layers, got \(1, 3, 8, 4\)'),
        ([torch.rand(3, 8, 4)] * 3, r'\(3, 3, 8, 4\)'),
    ],
)
def test_outputs_that_are_no_queries_are_refused(models, value, message):
    model = models()
    step = make_step(model, model, outputs(), outputs(seed=1))
    alignment = align('IndexQueryAlignment')
    alignment.check(model, model, {})
    with pytest.raises(ConfigError, match=message):
        alignment(value, step.teacher_record[HEAD], step)


@pytest.mark.parametrize(
    ('kind', 'options', 'message'),
    [
        (
            'HungarianQueryAlignment',
            dict(of='classes'),
            "align.of: must be one of .*, got 'classes'",
        ),
        (
            'HungarianQueryAlignment',
            dict(box_format='xywh'),
            "align.box_format: must be one of .*, got 'xywh'",
        ),
        (
            'IndexQueryAlignment',
            dict(no_object_weight=2),
            r'align.no_object_weight: must be in \[0, 1\], got 2',
        ),
        ('HungarianQueryAlignment', dict(cost_l1=-1), 'must not be negative'),
        (
            'HungarianQueryAlignment',
            dict(num_queries=0),
            'align.num_queries: must be at least 1, got 0',
        ),
    ],
)
def test_options_are_checked(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        align(kind, **options)


def test_by_index_needs_equal_numbers_and_queries_that_stay(models):
    alignment = align('IndexQueryAlignment')
    with pytest.raises(
        ConfigError, match=r'the same number of queries, got 5 and 9.*num_queries=9'
    ):
        alignment.check(models(queries=5), models(queries=9), {})
    with pytest.raises(ConfigError, match='selects the queries of each image'):
        alignment.check(models('DINO'), models('DINO'), {})


def test_what_a_loss_needs_is_asked_for(models):
    common = dict(student='bbox_head', teacher='bbox_head')
    of_box = dict(type='HungarianQueryAlignment', of='box')
    giou = LossEntry('loss_kd', dict(common, type='GIoU', align=of_box))
    with pytest.raises(
        ConfigError, match="losses.loss_kd.align.box_format: must be 'xyxy' for GIoU, got 'cxcywh'"
    ):
        giou.check(models(), models(), {})
    sigmoid = LossEntry(
        'loss_kd', dict(common, type='KLDivergence', align=dict(type='HungarianQueryAlignment'))
    )
    with pytest.raises(ConfigError, match="set activation='sigmoid'"):
        sigmoid.check(models(), models('DINO'), {})
