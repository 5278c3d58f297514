"""mmkd/cache/proposals.py: what box heads say of the teacher's proposals, brought to other views."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from mmdet.structures.bbox import get_box_tensor
from tiny_caches import answers, both, distiller, losses_of, single, view
from tiny_models import ROI_LOSSES, batch, cascade_rcnn, faster_rcnn
from torch import Tensor

from mmkd.cache.files import CacheWriter
from mmkd.cache.views import View, ViewTransform
from mmkd.distillers import Distiller
from mmkd.recorder import Source

RAW = batch((128, 160))
HEAD = 'roi_head.bbox_head'
# Deltas of random weights are wild; these lead nowhere far from the proposal.
CALM = dict(bbox_coder=dict(target_stds=[0.02] * 4))
OPTIONS = dict(proposals='teacher', num_proposals=12)


def losses(ours: str = HEAD, theirs: str = HEAD) -> dict:
    entries = copy.deepcopy(ROI_LOSSES)
    for entry in entries.values():
        for side, path in (('student', ours), ('teacher', theirs)):
            entry[side] = entry[side].replace(HEAD, path)
    return entries


@pytest.fixture(scope='module')
def models(tmp_path_factory) -> tuple[Distiller, Distiller]:
    teacher = faster_rcnn(channels=24, roi_head=dict(bbox_head=CALM))
    folder = tmp_path_factory.mktemp('proposals')
    return both(folder, faster_rcnn(), teacher, losses(), RAW, **OPTIONS)


def alone(live: Distiller) -> tuple[dict, Tensor]:
    """What the live teacher says of each image without the other's padding, and its proposals."""
    found = [answers(live, one) for one in single(RAW)]
    said = {source: torch.cat([each[0][source] for each in found]) for source in found[0][0]}
    rois = [next(iter(shared['rois'].values())).clone() for _, shared in found]
    for index, each in enumerate(rois):
        each[:, 0] = index
    return said, torch.cat(rois)


def decoded(model: Distiller, rois: Tensor, deltas: Tensor, path: str = HEAD) -> Tensor:
    """Boxes of each class, shape (n, classes, 4)."""
    coder = model.teacher.detector.get_submodule(path).bbox_coder
    each = rois[:, 1:].repeat_interleave(deltas.shape[1] // 4, 0)
    return get_box_tensor(coder.decode(each, deltas.reshape(-1, 4))).reshape(len(rois), -1, 4)


def brought(rois: Tensor, boxes: Tensor, raw: dict) -> tuple[Tensor, Tensor]:
    """Boxes (n, …, 4) of the proposals' images in another view, and the share of each that is left."""
    old, new = (
        [View.from_sample(sample) for sample in each['data_samples']] for each in (RAW, raw)
    )
    return ViewTransform.between(old, new).rows(rois[:, 0].long()).boxes(boxes)


def at_least_a_pixel(boxes: Tensor) -> Tensor:
    """At the edge of a view a box may shrink to nothing, which no delta leads to."""
    center, size = (
        (boxes[..., :2] + boxes[..., 2:]) / 2,
        (boxes[..., 2:] - boxes[..., :2]).clamp(min=1),
    )
    return torch.cat([center - size / 2, center + size / 2], -1)


def close(found: Tensor, wanted: Tensor, atol: float = 2e-3) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=2e-3)


def test_the_same_view_whatever_the_padding(models):
    live, cached = models
    wanted, rois = alone(live)
    for raw in (RAW, *single(RAW)):
        said, shared = answers(cached, raw)
        ids = [sample.img_id for sample in raw['data_samples']]
        chosen = torch.isin(rois[:, 0], torch.tensor(ids))
        assert torch.equal(shared['rois'][HEAD][:, 1:], rois[chosen, 1:])
        assert shared['rois'][HEAD][:, 0].unique().tolist() == list(range(len(ids)))
        for source, value in wanted.items():
            close(said[source], value[chosen])
        assert not shared['stored_masks']


def test_losses_of_one_image_are_those_with_the_teacher(models):
    live, cached = models
    for raw in single(RAW):
        ours, theirs = losses_of(cached, raw), losses_of(live, raw)
        for name, value in theirs.items():
            assert float(ours[name]) == pytest.approx(float(value), rel=5e-3), name


CHANGES = {
    'flipped': dict(flip=True),
    'enlarged': dict(scale=1.5),
    'cropped': dict(crop=(40, 30, 120, 110)),
    'all of it': dict(flip=True, crop=(20, 10, 130, 100), scale=1.25),
}


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_boxes_follow_and_scores_stay(models, change):
    """Proposals as well as what each class's deltas make of them."""
    live, cached = models
    raw = view(RAW, **change)
    wanted, rois = alone(live)
    said, shared = answers(cached, raw)
    moved, share = brought(rois, rois[:, 1:], raw)
    stays = share >= 0.3
    assert stays.all() == ('crop' not in change)
    assert stays.any()
    found = shared['rois'][HEAD]
    assert torch.equal(found[:, 0], rois[stays, 0])
    close(found[:, 1:], moved[stays])
    close(said[Source(f'{HEAD}.fc_cls')], wanted[Source(f'{HEAD}.fc_cls')][stays])
    deltas = Source(f'{HEAD}.fc_reg')
    boxes, _ = brought(rois, decoded(live, rois, wanted[deltas]), raw)
    close(decoded(cached, found, said[deltas]), at_least_a_pixel(boxes[stays]), atol=0.05)
    assert all(torch.isfinite(value) for value in losses_of(cached, raw).values())


def rewritten(cached: Distiller, folder: Path, keep: dict[str, int]) -> Distiller:
    """A distiller with a cache that has fewer proposals of each image."""
    old = cached.teacher.reader
    writer = CacheWriter(folder, old.identity)
    for name in old:
        rows = {
            key: value[: keep[name]] if key.startswith('proposals.') else value
            for key, value in old[name].items()
        }
        writer.add(name, rows)
    writer.finish()
    return distiller(faster_rcnn(), dict(cache=str(folder)), losses())


@pytest.mark.parametrize('change', [{}, dict(flip=True), dict(crop=(40, 30, 120, 110))])
def test_images_without_proposals(models, tmp_path, change):
    """An RPN finds nothing, in one image or in all."""
    raw = view(RAW, **change)
    for case, counts in enumerate(((0, 5), (5, 0), (0, 0))):
        model = rewritten(models[1], tmp_path / str(case), dict(zip('01', counts, strict=True)))
        said, shared = answers(model, raw)
        rois = shared['rois'][HEAD]
        assert rois.shape[1] == 5
        assert set(rois[:, 0].tolist()) <= {i for i, count in enumerate(counts) if count}
        for value in said.values():
            assert len(value) == len(rois)
        assert all(torch.isfinite(value) for value in losses_of(model, raw).values())


def test_a_crop_without_any_proposal_keeps_the_nearest(models):
    """A box head cannot look at nothing."""
    cached = models[1]
    boxes = cached.teacher.reader['0']['proposals.boxes']
    raw = view(single(RAW)[0], crop=(0, 0, 6, 6), scale=8.0)
    moved, share = brought(
        torch.zeros(len(boxes), 5), boxes, dict(data_samples=raw['data_samples'] * 2)
    )
    assert (share < 0.3).all()
    said, shared = answers(cached, raw)
    close(shared['rois'][HEAD][:, 1:], moved[share.argmax()][None])
    assert len(said[Source(f'{HEAD}.fc_cls')]) == 1
    assert all(torch.isfinite(value) for value in losses_of(cached, raw).values())


def test_min_visible_is_up_to_the_config(models):
    cached = models[1]
    raw, counts = view(RAW, crop=(40, 30, 120, 110)), []
    for value in (0.0, 0.3, 0.6, 1.0):
        teacher = dict(cache=cached.teacher.cache, min_visible=value)
        model = distiller(faster_rcnn(), teacher, losses())
        counts.append(len(answers(model, raw)[1]['rois'][HEAD]))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == len(alone(models[0])[1])
    assert len(set(counts)) == 4


def test_stages_of_a_cascade(tmp_path):
    """All look at the same proposals; deltas are brought by the coder of their stage."""
    paths = [f'{HEAD}.0', f'{HEAD}.2']
    entries = {
        f'{name}_{path[-1]}': entry for path in paths for name, entry in losses(path, path).items()
    }
    teacher = cascade_rcnn(channels=24)
    live, cached = both(tmp_path, cascade_rcnn(), teacher, entries, RAW, **OPTIONS)
    (one, _) = single(RAW)
    (said, shared), (wanted, _) = answers(cached, one), answers(live, one)
    assert sorted(shared['rois']) == paths
    for source, value in wanted.items():
        close(said[source], value)
    raw = view(one, flip=True)
    said, shared = answers(cached, raw)
    rois = shared['rois'][paths[0]]
    for path in paths:
        assert torch.equal(shared['rois'][path], rois)
        source = Source(f'{path}.fc_reg')
        before = decoded(live, answers(live, one)[1]['rois'][path], wanted[source], path)
        boxes, _ = brought(rois, before, dict(data_samples=raw['data_samples'] * 2))
        found = decoded(cached, rois, said[source], path)
        close(found, at_least_a_pixel(boxes), atol=1.0)  # half a thousandth of hundreds of pixels
    ours, theirs = losses_of(cached, one), losses_of(live, one)
    for name, value in theirs.items():
        assert float(ours[name]) == pytest.approx(float(value), rel=1e-2), name


def test_what_else_a_box_head_computes(tmp_path):
    """Embeddings of proposals belong to them and are not changed."""
    layer = f'{HEAD}.shared_fcs.1'
    recorded = dict(module=layer, copy=True)  # an activation follows
    entry = dict(type='MSE', student=recorded, teacher=recorded)
    live, cached = both(tmp_path, faster_rcnn(), faster_rcnn(), dict(loss_kd=entry), RAW, **OPTIONS)
    (one, _) = single(RAW)
    wanted = answers(live, one)[0][Source(layer, copy=True)]
    for change in ({}, dict(flip=True)):
        close(answers(cached, view(one, **change))[0][Source(layer, copy=True)], wanted)


def test_images_twice_as_large_for_the_teacher(tmp_path):
    """Proposals are kept in the student's pixels."""
    live, cached = both(
        tmp_path,
        faster_rcnn(),
        faster_rcnn(channels=24, roi_head=dict(bbox_head=CALM)),
        losses(),
        RAW,
        scale=2,
        **OPTIONS,
    )
    (one, _) = single(RAW)
    (said, shared), (wanted, theirs) = answers(cached, one), answers(live, one)
    close(shared['rois'][HEAD], theirs['rois'][HEAD])
    for source, value in wanted.items():
        close(said[source], value)
    raw = view(one, flip=True, scale=1.25)
    again, shared = answers(cached, raw)
    moved, _ = brought(
        theirs['rois'][HEAD],
        theirs['rois'][HEAD][:, 1:],
        dict(data_samples=raw['data_samples'] * 2),
    )
    close(shared['rois'][HEAD][:, 1:], moved)
    ours, live_losses = losses_of(cached, one), losses_of(live, one)
    for name, value in live_losses.items():
        assert float(ours[name]) == pytest.approx(float(value), rel=1e-2), name


def test_a_student_of_some_classes(tmp_path):
    """All scores are kept, so that any student can choose."""
    student = faster_rcnn(classes=2)
    teacher = faster_rcnn(channels=24, roi_head=dict(bbox_head=CALM))
    both(tmp_path, faster_rcnn(), teacher, losses(), RAW, **OPTIONS)
    config = dict(config=dict(model=teacher), checkpoint=str(tmp_path / 'teacher.pth'), **OPTIONS)
    (one, _) = single(RAW)
    found = []
    for options in (config, dict(cache=str(tmp_path / 'cache'))):
        model = distiller(student, options, losses(), class_names=('person', 'cat'))
        raw = copy.deepcopy(one)
        instances = raw['data_samples'][0].gt_instances
        raw['data_samples'][0].gt_instances = instances[instances.labels < 2]
        found.append(losses_of(model, raw))
    for name, value in found[0].items():
        assert float(found[1][name]) == pytest.approx(float(value), rel=5e-3), name
