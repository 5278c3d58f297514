"""mmkd/cache/queries.py: what a decoder says, brought to other views."""

from __future__ import annotations

import pytest
import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from tiny_caches import answers, both, distiller, losses_of, single, view
from tiny_models import batch
from tiny_transformers import transformer

from mmkd.alignments.queries import HEAD, QUERIES
from mmkd.cache.files import CacheWriter
from mmkd.cache.queries import NO_OBJECT
from mmkd.families.class_scores import class_probabilities, uses_softmax

RAW = batch((96, 128))  # of unequal width
QUERY = dict(student='bbox_head', teacher='bbox_head')
EMBEDDING = dict(module='bbox_head', capture='input', index=0)
MATCH = dict(type='HungarianQueryAlignment')


def losses(sigmoid: bool, **align) -> dict:
    activation = dict(activation='sigmoid') if sigmoid else {}
    align = dict(MATCH, **align)
    return dict(
        loss_kd_cls=dict(QUERY, type='KLDivergence', align=dict(align, of='class'), **activation),
        loss_kd_box=dict(QUERY, type='L1', align=dict(align, of='box')),
        loss_kd_query=dict(
            type='MSE', student=EMBEDDING, teacher=EMBEDDING, align=dict(align, of='embedding')
        ),
    )


@pytest.fixture(scope='module', params=['DETR', 'DeformableDETR'])
def models(request, tmp_path_factory):
    """With a softmax and with sigmoids, all layers kept."""
    config = transformer(request.param)
    sigmoid = request.param != 'DETR'
    return both(tmp_path_factory.mktemp('queries'), config, config, losses(sigmoid), RAW)


def close(cached, live) -> None:
    torch.testing.assert_close(cached, live, atol=2e-3, rtol=2e-3)


def alone(live) -> dict:
    """What the live teacher says of each image without the other's padding."""
    said = [answers(live, one)[0] for one in single(RAW)]
    return {
        HEAD: tuple(torch.cat(each, 1) for each in zip(*(s[HEAD] for s in said), strict=True)),
        QUERIES: torch.cat([torch.stack(list(s[QUERIES])) for s in said], 1),
    }


def test_the_same_view_whatever_the_padding(models):
    live, cached = models
    wanted = alone(live)
    for raw in (RAW, *single(RAW)):
        said, shared = answers(cached, raw)
        images = [sample.img_id for sample in raw['data_samples']]
        for value, other in zip(said[HEAD], wanted[HEAD], strict=True):
            close(value, other[:, images])
        assert torch.equal(said[HEAD][1], wanted[HEAD][1][:, images])  # boxes keep every digit
        close(said[QUERIES], wanted[QUERIES][:, images])
        assert shared['scale'] == (1.0, 1.0)
        assert not shared['stored_masks']


def test_losses_of_one_image_are_those_with_the_teacher(models):
    live, cached = models
    for raw in single(RAW):
        ours, theirs = losses_of(cached, raw), losses_of(live, raw)
        for name, value in theirs.items():
            assert float(ours[name]) == pytest.approx(float(value), rel=5e-3), name


def test_a_flip_mirrors_boxes_and_nothing_else(models):
    live, cached = models
    wanted = alone(live)
    said, _ = answers(cached, view(RAW, flip=True))
    close(said[HEAD][0], wanted[HEAD][0])
    close(said[QUERIES], wanted[QUERIES])
    mirrored = wanted[HEAD][1] * torch.tensor([-1, 1, 1, 1]) + torch.tensor([1, 0, 0, 0])
    close(said[HEAD][1], mirrored)


def test_a_resize_changes_no_fraction(models):
    live, cached = models
    wanted = alone(live)[HEAD]
    said = answers(cached, view(RAW, scale=1.5))[0][HEAD]
    for value, other in zip(said, wanted, strict=True):
        close(value, other)


# Of the first image, in pixels; where they come to in a crop from (30, 10) to (90, 70); is it seen.
IN_VIEW = [
    ((40, 20, 60, 50), (10, 10, 30, 40), True),  # as a whole
    ((10, 20, 60, 50), (0, 10, 30, 40), True),  # 60 % of it
    ((10, 20, 35, 50), (0, 10, 5, 40), False),  # 20 %
    ((0, 0, 128, 96), (0, 0, 60, 60), False),  # 29 % of all there is
    ((0, 0, 124, 96), (0, 0, 60, 60), True),  # 30.2 %
    ((100, 80, 120, 90), (60, 60, 60, 60), False),  # nothing
    ((80, 60, 100, 80), (50, 50, 60, 60), False),  # a quarter
    ((-10, 30, 70, 40), (0, 20, 40, 30), True),  # half of it, and it reached over the edge
]


def with_boxes(cached, folder, boxes: torch.Tensor):
    """A distiller with the same cache, in which all images and layers have certain boxes."""
    old = cached.teacher.reader
    writer = CacheWriter(folder, old.identity)
    for name in old:
        fields = dict(old[name])
        fields['queries.boxes'] = boxes.expand_as(fields['queries.boxes']).clone()
        writer.add(name, fields)
    writer.finish()
    student = transformer('DETR' if uses_softmax(cached.student.bbox_head) else 'DeformableDETR')
    return distiller(
        student, dict(cache=str(folder)), losses(sigmoid=not uses_softmax(cached.student.bbox_head))
    )


@pytest.mark.parametrize('flip', [False, True])
def test_what_a_crop_leaves_out_is_no_object(models, tmp_path, flip):
    cached = models[1]
    (one, _) = single(RAW)
    boxes, wanted, seen = (torch.tensor(each) for each in zip(*IN_VIEW, strict=True))
    pixels = torch.tensor([128, 96, 128, 96])
    cached = with_boxes(cached, tmp_path / 'cache', bbox_xyxy_to_cxcywh(boxes / pixels))
    crop = (38, 10, 98, 70) if flip else (30, 10, 90, 70)
    if flip:  # the same window of the flipped image
        wanted = wanted[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor(
            [60, 0, 60, 0]
        )
    scores, found = answers(cached, view(one, flip=flip, crop=crop, scale=2.0))[0][HEAD]
    found = bbox_cxcywh_to_xyxy(found) * 60
    torch.testing.assert_close(found, wanted.float().expand_as(found), atol=1e-3, rtol=0)
    before = answers(cached, one)[0][HEAD][0]
    assert torch.equal(scores[:, :, seen], before[:, :, seen])
    gone = scores[:, :, ~seen]
    probability = class_probabilities(gone, uses_softmax(cached.student.bbox_head))
    assert float(probability.max()) < 1e-4
    assert float(gone.abs().max()) == NO_OBJECT
    value = losses_of(cached, view(RAW, flip=flip, crop=crop, scale=2.0))
    assert all(torch.isfinite(each) for each in value.values())


def test_a_crop_of_nothing_it_saw(models):
    """No box of the teacher is in view: nothing to learn of boxes, and no trouble."""
    _, cached = models
    cached.teacher.min_visible, before = 1.0, cached.teacher.min_visible
    try:
        crop = view(RAW, crop=(40, 40, 44, 44), scale=16.0)
        said = answers(cached, crop)[0][HEAD]
        assert float(said[0].abs().min()) == NO_OBJECT
        found = losses_of(cached, crop)
    finally:
        cached.teacher.min_visible = before
    assert all(torch.isfinite(value) for value in found.values())


def test_each_image_in_its_own_view(models):
    """One is flipped, the other shown as it is."""
    _, cached = models
    flipped = view(RAW, flip=True)
    mixed = {key: [RAW[key][0], flipped[key][1]] for key in RAW}
    said = answers(cached, mixed)[0][HEAD]
    for index, raw in enumerate((RAW, flipped)):
        for value, other in zip(said, answers(cached, raw)[0][HEAD], strict=True):
            close(value[:, index], other[:, index])


@pytest.mark.parametrize(
    ('layers', 'kept'), [('last', [2]), ([0], [0]), ([[2, 0], [1, 2]], [0, 2])]
)
def test_only_layers_that_are_read(tmp_path, layers, kept):
    config = transformer('DETR', layers=(1, 3))
    live, cached = both(tmp_path, config, config, losses(False, layers=layers), RAW)
    teacher = cached.teacher
    fields = teacher.reader['0']
    assert fields['queries.scores'].shape == (len(kept), 8, 4)
    assert fields['queries.embeddings'].shape == (len(kept), 8, 32)
    (one, _) = single(RAW)
    said, wanted = answers(cached, one)[0], answers(live, one)[0]
    for source in (HEAD, QUERIES):
        for value, other in zip(
            *(
                s[source] if source == HEAD else [torch.stack(list(s[source]))]
                for s in (said, wanted)
            ),
            strict=True,
        ):
            close(value[kept], other[kept])
    ours, theirs = losses_of(cached, one), losses_of(live, one)
    for name, value in theirs.items():
        assert float(ours[name]) == pytest.approx(float(value), rel=5e-3), name


def test_images_twice_as_large_for_the_teacher(tmp_path):
    config = transformer('DETR')
    live, cached = both(tmp_path, config, config, losses(False), RAW, scale=2)
    (one, _) = single(RAW)
    said, shared = answers(cached, one)
    wanted, live_shared = answers(live, one)
    assert shared['scale'] == live_shared['scale'] == (2.0, 2.0)
    for value, other in zip(said[HEAD], wanted[HEAD], strict=True):
        close(value, other)


def test_dino_without_its_denoising_queries(tmp_path):
    config = transformer('DINO', queries=6)
    live, cached = both(tmp_path, config, config, losses(True, layers='last'), RAW)
    (one, _) = single(RAW)
    said, wanted = (answers(model, one)[0][HEAD] for model in (cached, live))
    assert said[0].shape[2] == 6
    close(said[0][-1], wanted[0][-1, :, -6:])
    close(said[1][-1], wanted[1][-1, :, -6:])
    assert all(torch.isfinite(value) for value in losses_of(cached, RAW).values())
