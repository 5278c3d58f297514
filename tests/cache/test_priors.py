"""mmkd/cache/priors.py: what dense heads and RPNs say, brought to other views."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_caches import answers, both, distiller, losses_of, single, teacher_of, view, write
from tiny_dense import KINDS, single_stage
from tiny_models import RPN_LOSSES, batch, faster_rcnn
from torch import Tensor

from mmkd.alignments.dense_output import HEAD
from mmkd.cache.contents import Batch
from mmkd.cache.priors import RPN, DenseContent
from mmkd.cache.views import View, ViewTransform
from mmkd.distillers import Distiller
from mmkd.families.class_scores import uses_softmax
from mmkd.families.dense_heads import class_logits, dense_head, predicted_boxes, prediction_scores

RAW = batch((128, 160))
# Of 128 k + 1 pixels all strides are symmetrical; the second image would be padded.
ODD = batch((129, 257), images=1)


def losses(kind: str, softmax: bool = False) -> dict:
    head = dict(student='bbox_head', teacher='bbox_head')
    activation = 'softmax' if softmax or kind == 'SSD' else 'sigmoid'
    align = dict(type='DenseClassAlignment')
    found = dict(
        loss_kd_cls=dict(head, type='KLDivergence', activation=activation, align=align),
        loss_kd_box=dict(head, type='GIoU', align=dict(type='DenseBoxAlignment')),
    )
    if kind == 'GFL':
        align = dict(type='DenseDistributionAlignment')
        found['loss_ld'] = dict(head, type='KLDivergence', tau=10.0, align=align)
    return found


def config_of(kind: str) -> dict:
    config = single_stage(kind)
    if kind == 'RTMDet':  # which is published with a pipeline that pads
        config.data_preprocessor.pad_size_divisor = 32
    return config


def calm(state: dict[str, Tensor]) -> None:
    """Random weights of YOLOX give boxes of infinite size."""
    for name, value in state.items():
        if 'bbox_head.multi_level_conv_' in name:
            value *= 1e-4


def close(found: Tensor, wanted: Tensor, atol: float = 2e-3) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=2e-3)


def rows_of(head, part: list[Tensor]) -> list[Tensor]:
    """Maps as rows of priors, shape (N, places * priors a place, width) a level."""
    kinds = head.prior_generator.num_base_priors
    return [
        level.permute(0, 2, 3, 1).reshape(len(level), -1, level.shape[1] // kinds[index])
        for index, level in enumerate(part)
    ]


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Builds a live and a cached distiller of a kind, once."""
    made = {}

    def get(kind: str) -> tuple[Distiller, Distiller]:
        if kind not in made:
            folder, config = tmp_path_factory.mktemp(kind), config_of(kind)
            made[kind] = both(folder, config, config, losses(kind), RAW, change=calm)
        return made[kind]

    return get


@pytest.mark.parametrize('kind', KINDS)
def test_the_same_view_whatever_the_padding(models, kind):
    live, cached = models(kind)
    for index, one in enumerate(single(RAW)):
        wanted = answers(live, one)[0][HEAD]
        said, shared = answers(cached, one)
        assert len(said[HEAD]) == len(wanted)
        for part, other in zip(said[HEAD], wanted, strict=True):
            for level, truth in zip(part, other, strict=True):
                close(level, truth)
        # The images are padded to different sizes when they are shown together.
        padded, shared = answers(cached, RAW)
        for number, (part, other) in enumerate(zip(padded[HEAD], wanted, strict=True)):
            for level, truth, known in zip(part, other, shared['stored_masks'][HEAD], strict=True):
                height, width = truth.shape[2:]
                close(level[index, :, :height, :width], truth[0])
                assert known.dtype == torch.bool
                assert known[index, :, :height, :width].all()
                beyond = level[index, :, :, width:]
                assert not known[index, :, :, width:].any()
                assert number != 1 or not beyond.any()


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'PAA'])
def test_losses_of_one_image_are_those_with_the_teacher(models, kind):
    live, cached = models(kind)
    one = single(RAW)[0]
    ours, theirs = losses_of(cached, one), losses_of(live, one)
    for name, value in theirs.items():
        assert float(ours[name]) == pytest.approx(float(value), rel=5e-3), name


def expected(model: Distiller, name: str, raw: dict) -> dict[tuple, tuple[Tensor, Tensor, Tensor]]:
    """What should be said of one image in a view, one prior after the other.

    Returns:
        By level, row, column, kind: class scores, box and the rest of what was said there.
    """
    head, fields = model.teacher.detector.bbox_head, model.teacher.reader[name]
    generator, (sample,) = head.prior_generator, raw['data_samples']
    old, new = View.from_values(fields['view'].tolist()), View.from_sample(sample)
    strides = [s if isinstance(s, (int, float)) else s[0] for s in generator.strides]
    grown = abs(new.scale[0] / old.scale[0] * new.scale[1] / old.scale[1]) ** 0.5
    transform = ViewTransform.between([old], [new])
    height, width = sample.img_shape
    found = {}
    parts = [fields[key].float() for key in sorted(fields) if key.startswith('dense.part')]
    for index, (level, row, column, kind) in enumerate(fields['dense.places'].tolist()):
        box = decoded(head, level, (row, column, kind), parts[1][index])
        (moved,), (share,) = (each[0] for each in transform.boxes(box[None, None]))
        by_stride = {abs(torch.tensor(s / (strides[level] * grown)).log2()): s for s in strides}
        if min(by_stride) > 0.55 or share < 0.3:
            continue
        new_level = strides.index(by_stride[min(by_stride)])
        stride = strides[new_level]
        origin = middle(generator.single_level_grid_priors((1, 1), new_level, device='cpu')[kind])
        place = middle(generator.single_level_grid_priors((1, 1), level, device='cpu')[kind])
        place = place + torch.tensor([column, row]) * strides[level]
        at = (transform.points(place[None, None])[0, 0] - origin) / stride
        column, row = at.round().int().tolist()
        inside = 0 <= row < -(-height // stride) and 0 <= column < -(-width // stride)
        if inside:
            rest = torch.cat([part[index] for part in parts[2:]]) if parts[2:] else torch.zeros(0)
            found.setdefault((new_level, row, column, kind), (parts[0][index], moved, rest))
    return found


def middle(prior: Tensor) -> Tensor:
    return prior if len(prior) == 2 else (prior[:2] + prior[2:]) / 2


def decoded(head, level: int, place: tuple[int, int, int], values: Tensor) -> Tensor:
    """The box that values mean at a place, by a map that has them there."""
    (row, column, kind), kinds = place, head.prior_generator.num_base_priors[level]
    whole = torch.zeros(1, kinds, len(values), row + 1, column + 1)
    whole[0, kind, :, row, column] = values
    boxes = predicted_boxes(head, level, whole.flatten(1, 2))[0]
    return boxes[(row * (column + 1) + column) * kinds + kind]


VIEWS = {
    'flipped': dict(flip=True),
    'cropped': dict(crop=(40, 24, 136, 120)),
    'twice as large': dict(scale=2.0),
    'smaller': dict(scale=0.75),
    'all of it': dict(flip=True, crop=(23, 17, 141, 127), scale=1.5),
}


# How boxes are coded differs from kind to kind, in what way they move does not.
CHANGES = [(kind, 'all of it') for kind in KINDS]
CHANGES += [(kind, name) for kind in ('RetinaNet', 'GFL', 'YOLOX') for name in list(VIEWS)[:-1]]


@pytest.mark.parametrize(('kind', 'change'), CHANGES)
def test_boxes_and_scores_come_to_where_they_belong(models, tmp_path, kind, change):
    """Kept are the surest 40: each is where its place has gone, with its box encoded anew."""
    live, _ = models(kind)
    if not hasattr(live, 'few'):
        folder = Path(tmp_path) / 'cache'
        checkpoint = Path(live.teacher.checkpoint)
        teacher = dict(config=dict(model=config_of(kind)), checkpoint=str(checkpoint))
        write(live, teacher, folder, RAW, num_priors=40)
        few = distiller(config_of(kind), dict(cache=str(folder)), losses(kind))
        live.__dict__['few'] = few
    cached = live.few
    head = cached.teacher.detector.bbox_head
    (one, _) = single(RAW)
    raw = view(one, **VIEWS[change])
    wanted = expected(cached, '0', raw)
    said, shared = answers(cached, raw)
    known = shared['stored_masks'][HEAD]
    assert sum(int(mask.sum()) for mask in known) == len(wanted)
    assert 0 < len(wanted) <= 40
    for (level, row, column, kind_of), (scores, box, rest) in wanted.items():
        assert known[level][0, kind_of, row, column]
        maps = [rows_of(head, part)[level][0] for part in said[HEAD]]
        kinds, width = head.prior_generator.num_base_priors[level], said[HEAD][0][level].shape[3]
        at = (row * width + column) * kinds + kind_of
        close(class_logits(head, maps[0])[at], scores)
        assert torch.equal(torch.cat([torch.zeros(0), *(each[at] for each in maps[2:])]), rest)
        found = decoded(head, level, (row, column, kind_of), maps[1][at])
        if hasattr(head, 'integral'):
            continue  # of distributions below
        size = (box[2:] - box[:2]).clamp(min=1)
        center = (box[:2] + box[2:]) / 2
        wished = torch.cat([center - size / 2, center + size / 2])
        torch.testing.assert_close(found, wished, atol=0.05, rtol=2e-3)


@pytest.mark.parametrize('kind', KINDS)
def test_all_else_is_their_mean(models, tmp_path, kind):
    """Of classes, and of centredness or objectness; of boxes nothing is known."""
    live, _ = models(kind)
    teacher = dict(config=dict(model=config_of(kind)), checkpoint=live.teacher.checkpoint)
    folder = write(live, teacher, tmp_path / 'cache', RAW, num_priors=40)
    cached = distiller(config_of(kind), dict(cache=str(folder)), losses(kind))
    head, (one, _) = cached.teacher.detector.bbox_head, single(RAW)
    said, shared = answers(cached, one)
    wanted = answers(live, one)[0][HEAD]
    known = torch.cat([mask.permute(0, 2, 3, 1).flatten() for mask in shared['stored_masks'][HEAD]])
    assert int(known.sum()) == 40
    parts, truths = (
        [torch.cat(rows_of(head, p), 1)[0] for p in each] for each in (said[HEAD], wanted)
    )
    truths[0], parts[0] = (class_logits(head, each[0]) for each in (truths, parts))
    quality = truths[2] if dense_head(head).quality else None
    confidence = prediction_scores(head, truths[0], quality).amax(-1)
    assert confidence[known].min() >= confidence[~known].max() - 1e-6
    for number, (part, truth) in enumerate(zip(parts, truths, strict=True)):
        close(part[known], truth[known])
        rest = part[~known]
        assert (rest == rest[0]).all()
        if number == 1:
            assert not rest.any()
        else:
            of = (
                torch.sigmoid
                if number or not uses_softmax(head)
                else partial(torch.softmax, dim=-1)
            )
            torch.testing.assert_close(of(rest[0]), of(truth[~known]).mean(0), atol=1e-6, rtol=1e-4)
    if kind != 'PAA':  # which trains with scikit-learn alone
        assert all(torch.isfinite(value) for value in losses_of(cached, RAW).values())


# ------------------------------------------------------------------ flips


def symmetrical(kind: str) -> dict:
    """A config of which all strides of an image of odd size are symmetrical."""
    config = single_stage(kind)
    config.data_preprocessor.pad_size_divisor = 1
    config.neck.upsample_cfg = dict(mode='bilinear', align_corners=True)
    return config


def mirror_boxes(path: Path, name: str, width: int) -> None:
    """Let the box layer of a checkpoint say of the mirrored image what is mirrored.

    Args:
        path: Of a checkpoint whose convolutions are symmetrical.
        name: Of the layer.
        width: Numbers an edge; 0 for deltas, whose first of four is that across.
    """
    content = torch.load(path)
    weight, bias = (content['state_dict'][f'{name}.{each}'] for each in ('weight', 'bias'))
    random = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)) * 0.05
    if width:
        edges, shifts = weight.view(-1, 4, width, *weight.shape[1:]), bias.view(-1, 4, width)
        edges[:, 0] += random.view_as(edges)[:, 0]
        edges[:, 2], shifts[:, 2] = edges[:, 0].flip(-1), shifts[:, 0]
    else:
        across = weight.view(-1, 4, *weight.shape[1:])[:, 0]
        noise = random.view(-1, 4, *weight.shape[1:])[:, 0]
        across.copy_(noise - noise.flip(-1))
        bias.view(-1, 4)[:, 0] = 0
    torch.save(content, path)


# Such weights know places as indices of pixels, the last of which mirrors the first; edges of boxes lie
# between pixels, so that what the teacher says of the flipped image is one pixel to the left.
PIXEL = torch.tensor([1.0, 0.0, 1.0, 0.0])
FLIPPED = {
    'RetinaNet': ('bbox_head.retina_reg', 0),
    'ATSS': ('bbox_head.atss_reg', 0),
    'GFL': ('bbox_head.gfl_reg', 17),
}


@pytest.mark.parametrize('kind', FLIPPED)
def test_flips_agree_with_a_teacher_that_is_symmetrical(tmp_path, kind):
    """Everywhere, scores and boxes, as far as half precision reaches."""
    config = symmetrical(kind)
    teacher = teacher_of(tmp_path / 'teacher.pth', config, symmetric=True)
    mirror_boxes(tmp_path / 'teacher.pth', *FLIPPED[kind])
    live = distiller(config, teacher, losses(kind))
    write(live, teacher, tmp_path / 'cache', ODD, num_priors=1_000_000)
    cached = distiller(config, dict(teacher, cache=str(tmp_path / 'cache')), losses(kind))
    raw = view(ODD, flip=True)
    wanted = answers(live, raw)[0][HEAD]
    plain = answers(live, ODD)[0][HEAD]
    assert not torch.allclose(wanted[0][0], plain[0][0], atol=0.01)  # it is no symmetrical image
    said, shared = answers(cached, raw)
    head = cached.teacher.detector.bbox_head
    for mask in shared['stored_masks'][HEAD]:
        assert mask.all()
    for number, (part, other) in enumerate(zip(said[HEAD], wanted, strict=True)):
        for level, (values, truth) in enumerate(zip(part, other, strict=True)):
            if number == 1:
                values, truth = (predicted_boxes(head, level, each) for each in (values, truth))
                truth = truth + PIXEL
            # Distributions that are wide lose a little at their last bins.
            close(values, truth, atol=0.002 if number != 1 else 0.5 if kind == 'GFL' else 0.02)


# ------------------------------------------------------------------ distributions of edges


@pytest.fixture(scope='module')
def gfl(tmp_path_factory) -> DenseContent:
    config = single_stage('GFL')
    folder = tmp_path_factory.mktemp('gfl')
    cached = both(folder, config, config, losses('GFL'), RAW)[1]
    return cached.teacher._contents[0]


def bring(gfl: DenseContent, edges: Tensor, old: View, new: View, **given) -> Tensor:
    """Distributions, shape (n, 4, 17), of priors at ``given['at']`` in another view, at a place there."""
    transform = ViewTransform.between([old], [new]).rows(torch.zeros(len(edges), dtype=torch.long))
    stride = torch.full((len(edges), 2), float(given.get('stride', 8)))
    new_stride = torch.full((len(edges), 2), float(given.get('new_stride', 8)))
    center = torch.tensor(given['to']).expand(len(edges), 2)
    shift = center - transform.points(torch.tensor(given['at']).expand(len(edges), 2))
    rows = gfl._distributions_in_new_view(
        edges.log().flatten(1), shift, stride, new_stride, transform, center
    )
    return rows.reshape(edges.shape).softmax(-1)


def bumps(means: list[float]) -> Tensor:
    """Distributions around four distances, shape (1, 4, 17)."""
    bins = torch.arange(17.0)
    each = torch.stack([torch.exp(-((bins - mean) ** 2)) for mean in means])
    return (each / each.sum(-1, keepdim=True))[None]


def mean(edges: Tensor) -> Tensor:
    return edges @ torch.arange(17.0)


WHOLE = View((1.0, 1.0), (0.0, 0.0), (160.0, 128.0))


def test_distributions_keep_mass_and_mean(gfl):
    edges = bumps([5.0, 6.5, 7.0, 4.2])
    place = [80.0, 64.0]
    same = bring(gfl, edges, WHOLE, WHOLE, at=place, to=place)
    torch.testing.assert_close(same, edges, atol=1e-5, rtol=0)
    # To a prior two pixels to the right and one up: a quarter and an eighth of a stride.
    moved = bring(gfl, edges, WHOLE, WHOLE, at=place, to=[82.0, 63.0])
    shift = torch.tensor([[0.25, -0.125, -0.25, 0.125]])
    torch.testing.assert_close(mean(moved), mean(edges) + shift, atol=1e-3, rtol=0)
    torch.testing.assert_close(moved.sum(-1), torch.ones(1, 4))
    # Larger by half, on the same stride; then on twice the stride.
    large = View((1.5, 1.5), (0.0, 0.0), (240.0, 192.0))
    at, to = [40.0, 40.0], [60.0, 60.0]
    for stride, factor in ((8, 1.5), (16, 0.75)):
        moved = bring(gfl, edges, WHOLE, large, at=at, to=to, new_stride=stride)
        torch.testing.assert_close(mean(moved), mean(edges) * factor, atol=2e-3, rtol=0)


def test_distributions_swap_left_and_right_in_a_flip(gfl):
    edges = bumps([3.0, 6.0, 9.0, 4.0])
    flipped = View((-1.0, 1.0), (160.0, 0.0), (160.0, 128.0))
    moved = bring(gfl, edges, WHOLE, flipped, at=[60.0, 64.0], to=[100.0, 64.0])
    torch.testing.assert_close(moved, edges[:, [2, 1, 0, 3]], atol=1e-5, rtol=0)
    upside = View((1.0, -1.0), (0.0, 128.0), (160.0, 128.0))
    moved = bring(gfl, edges, WHOLE, upside, at=[60.0, 50.0], to=[60.0, 78.0])
    torch.testing.assert_close(moved, edges[:, [0, 3, 2, 1]], atol=1e-5, rtol=0)


def test_distributions_end_where_the_view_cuts(gfl):
    edges = bumps([6.0, 6.0, 6.0, 6.0])
    crop = View((1.0, 1.0), (-40.0, 0.0), (120.0, 128.0))  # cuts on the left alone
    moved = bring(gfl, edges, WHOLE, crop, at=[56.0, 64.0], to=[16.0, 64.0])
    assert float(moved[0, 0, 3:].sum()) < 1e-4  # 16 pixels are two strides
    assert float(mean(moved)[0, 0]) == pytest.approx(2.0, abs=2e-3)
    torch.testing.assert_close(moved[:, 1:], edges[:, 1:], atol=1e-5, rtol=0)
    # A prior outside of the view's edge, and distances beyond the last bin: still distributions.
    beyond = bring(gfl, edges, WHOLE, crop, at=[56.0, 64.0], to=[-8.0, 64.0])
    huge = View((8.0, 8.0), (0.0, 0.0), (1280.0, 1024.0))
    last = bring(gfl, edges, WHOLE, huge, at=[56.0, 64.0], to=[448.0, 512.0])
    for each in (beyond, last):
        assert torch.isfinite(each).all()
        torch.testing.assert_close(each.sum(-1), torch.ones(1, 4))
    assert (mean(last) > 15.9).all()


# ------------------------------------------------------------------ RPN


def two_stage(softmax: bool = False, **changes) -> dict:
    loss = dict(type='CrossEntropyLoss', use_sigmoid=not softmax)
    return faster_rcnn(rpn_head=dict(loss_cls=loss), **changes)


def rpn_losses(softmax: bool = False) -> dict:
    found = copy.deepcopy(RPN_LOSSES)
    if softmax:
        found['loss_kd_rpn_cls']['activation'] = 'softmax'
    return found


def as_levels(value) -> list[Tensor]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize('softmax', [False, True], ids=['sigmoid', 'softmax'])
def test_an_rpn(tmp_path, softmax):
    config = two_stage(softmax)
    live, cached = both(tmp_path, config, config, rpn_losses(softmax), RAW)
    (one, _) = single(RAW)
    said, wanted = answers(cached, one)[0], answers(live, one)[0]
    for source in RPN:
        for level, truth in zip(said[source], wanted[source], strict=True):
            close(level, truth)
    ours, theirs = losses_of(cached, one), losses_of(live, one)
    for name, value in theirs.items():
        assert float(ours[name]) == pytest.approx(float(value), rel=5e-3), name
    for change in VIEWS.values():
        values = losses_of(cached, view(RAW, **change))
        assert all(torch.isfinite(value) for value in values.values())


def test_an_rpn_keeps_four_times_as_many_and_the_mean_of_the_rest(tmp_path):
    config = two_stage(softmax=True)
    live, cached = both(tmp_path, config, config, rpn_losses(True), RAW, num_priors=25)
    (one, _) = single(RAW)
    said, shared = answers(cached, one)
    wanted = answers(live, one)[0]
    mask = torch.cat([m.permute(0, 2, 3, 1).flatten() for m in shared['stored_masks'][RPN[1]]])
    assert int(mask.sum()) == 100
    scores, truth = (
        torch.cat([v.permute(0, 2, 3, 1).reshape(-1, 2) for v in each[RPN[0]]])
        for each in (said, wanted)
    )
    close(scores[mask], truth[mask])
    rest = scores[~mask].softmax(-1)
    torch.testing.assert_close(rest[0], truth[~mask].softmax(-1).mean(0), atol=1e-5, rtol=1e-4)
    assert (rest == rest[0]).all()


@pytest.mark.parametrize('name', RPN_LOSSES)
def test_one_loss_of_an_rpn(tmp_path, name):
    """Scores alone; or deltas, whose priors are chosen by the scores, with equal weights."""
    entry = copy.deepcopy(RPN_LOSSES[name])
    if name == 'loss_kd_rpn_bbox':
        entry['align']['confidence'] = False
    live, cached = both(tmp_path, faster_rcnn(), faster_rcnn(), {name: entry}, RAW)
    (one, _) = single(RAW)
    ours, theirs = losses_of(cached, one), losses_of(live, one)
    assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=5e-3)
    assert torch.isfinite(losses_of(cached, view(RAW, flip=True))[name])


def test_flips_of_a_symmetrical_rpn(tmp_path):
    changes = dict(
        data_preprocessor=dict(pad_size_divisor=1),
        neck=dict(upsample_cfg=dict(mode='bilinear', align_corners=True)),
    )
    config = faster_rcnn(**changes)
    teacher = teacher_of(tmp_path / 'teacher.pth', config, symmetric=True)
    mirror_boxes(tmp_path / 'teacher.pth', 'rpn_head.rpn_reg', 0)
    live = distiller(config, teacher, RPN_LOSSES)
    write(live, teacher, tmp_path / 'cache', ODD, num_priors=1_000_000)
    cached = distiller(config, dict(cache=str(tmp_path / 'cache')), RPN_LOSSES)
    raw = view(ODD, flip=True)
    said, wanted = answers(cached, raw)[0], answers(live, raw)[0]
    for level, truth in zip(said[RPN[0]], wanted[RPN[0]], strict=True):
        close(level, truth)
    head = cached.teacher.detector.rpn_head
    for index, levels in enumerate(zip(said[RPN[1]], wanted[RPN[1]], strict=True)):
        boxes, truth = (predicted_boxes(head, index, level) for level in levels)
        close(boxes, truth + PIXEL, atol=0.02)


# ------------------------------------------------------------------ other heads


def test_a_single_level(tmp_path):
    changes = dict(
        neck=dict(start_level=3, num_outs=1, add_extra_convs=False),
        bbox_head=dict(anchor_generator=dict(strides=[32])),
    )
    config = single_stage('RetinaNet', **changes)
    for name in ('dense', 'rpn'):
        (tmp_path / name).mkdir()
    live, cached = both(tmp_path / 'dense', config, config, losses('RetinaNet'), RAW)
    rpn = faster_rcnn(
        neck=dict(start_level=3, num_outs=1),
        rpn_head=dict(anchor_generator=dict(strides=[32])),
        roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[32])),
    )
    two = both(tmp_path / 'rpn', rpn, rpn, RPN_LOSSES, RAW)
    (one, _) = single(RAW)
    for (ours, theirs), sources in (((cached, live), [HEAD]), (two[::-1], RPN)):
        said, wanted = answers(ours, one)[0], answers(theirs, one)[0]
        for source in sources:
            parts = (
                zip(said[source], wanted[source], strict=True)
                if source == HEAD
                else [(as_levels(said[source]), as_levels(wanted[source]))]
            )
            for part, truth in parts:
                assert len(part) == 1
                close(part[0], truth[0])
        for change in VIEWS.values():
            values = losses_of(ours, view(RAW, **change))
            assert all(torch.isfinite(value) for value in values.values())


def test_a_dense_head_with_a_softmax(tmp_path):
    config = single_stage('RetinaNet')
    config.bbox_head.loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=False)
    live, cached = both(
        tmp_path, config, config, losses('RetinaNet', softmax=True), RAW, num_priors=60
    )
    (one, _) = single(RAW)
    said, shared = answers(cached, one)
    wanted = answers(live, one)[0][HEAD]
    head = cached.teacher.detector.bbox_head
    scores, truth = (torch.cat(rows_of(head, each[0]), 1)[0] for each in (said[HEAD], wanted))
    mask = torch.cat([m.permute(0, 2, 3, 1).flatten() for m in shared['stored_masks'][HEAD]])
    close(scores[mask], truth[mask])
    foreground = truth.softmax(-1)[:, :-1].amax(-1)  # not the background, which is surest of all
    assert foreground[mask].min() >= foreground[~mask].max() - 1e-6
    rest = scores[~mask].softmax(-1)
    torch.testing.assert_close(rest[0], truth[~mask].softmax(-1).mean(0), atol=1e-5, rtol=1e-3)


def test_priors_are_those_of_the_students_classes(tmp_path):
    """Of a teacher of three classes, a student of two is told where those are likeliest."""
    names, config = ('person', 'cat'), single_stage('FCOS')
    student = single_stage('FCOS', classes=2)
    teacher = teacher_of(tmp_path / 'teacher.pth', config)
    live = distiller(student, teacher, losses('FCOS'), class_names=names)
    raw = copy.deepcopy(RAW)
    for sample in raw['data_samples']:
        sample.gt_instances = sample.gt_instances[sample.gt_instances.labels < 2]
    write(live, teacher, tmp_path / 'cache', raw, num_priors=30)
    cached = distiller(student, dict(cache=str(tmp_path / 'cache')), losses('FCOS'), names)
    (one, _) = single(raw)
    said, shared = answers(cached, one)
    wanted = answers(live, one)[0][HEAD]
    head = cached.teacher.detector.bbox_head
    truth, centerness = (torch.cat(rows_of(head, wanted[i]), 1)[0].sigmoid() for i in (0, 2))
    truth = truth * centerness
    mask = torch.cat([m.permute(0, 2, 3, 1).flatten() for m in shared['stored_masks'][HEAD]])
    own = truth[:, [0, 2]].amax(-1)
    assert own[mask].min() >= own[~mask].max() - 1e-6
    every = truth.amax(-1)
    assert every[mask].min() < every[~mask].max()  # others would have been chosen of all three
    # In another order they are the same classes.
    other = distiller(student, dict(cache=str(tmp_path / 'cache')), losses('FCOS'), names[::-1])
    assert all(torch.isfinite(value) for value in losses_of(other, one).values())


@pytest.mark.parametrize('scale', [2, 0.5])
@pytest.mark.parametrize('kind', ['GFL', 'RetinaNet', 'FCOS'])
def test_images_of_another_size_for_the_teacher(tmp_path, kind, scale):
    """Places are those of its larger images, views those of the student."""
    config, entries, raw = single_stage(kind), losses(kind), batch((256, 320))
    if kind == 'RetinaNet':  # whose anchors would be others
        entries = dict(loss_kd_box=entries['loss_kd_box'])
    live, cached = both(tmp_path, config, config, entries, raw, scale=scale)
    (one, _) = single(raw)
    (said, shared), (wanted, theirs) = answers(cached, one), answers(live, one)
    assert shared['scale'] == theirs['scale'] == (scale, scale)
    for part, other in zip(said[HEAD], wanted[HEAD], strict=True):
        for level, truth in zip(part, other, strict=True):
            close(level, truth)
    # A view twice as large is to this teacher what it was to one of twice the scale.
    large = view(one, scale=2.0)
    known = answers(cached, large)[1]['stored_masks'][HEAD]
    sizes = [level.shape[2:] for level in answers(live, large)[0][HEAD][0]]
    assert [mask.shape[2:] for mask in known] == sizes
    assert not known[0].any()
    assert known[1].any()


def test_nothing_of_the_image_is_left(models):
    """A view in which no prior's box has its place: nothing is known, and losses are finite."""
    _, cached = models('FCOS')
    cached.teacher.min_visible, before = 1.0, cached.teacher.min_visible
    try:
        raw = view(RAW, crop=(70, 60, 74, 64), scale=16.0)
        _, shared = answers(cached, raw)
        found = losses_of(cached, raw)
    finally:
        cached.teacher.min_visible = before
    assert not any(mask.any() for mask in shared['stored_masks'][HEAD])
    assert float(found['loss_kd_box']) == 0
    assert torch.isfinite(found['loss_kd_cls'])


def test_batch_is_as_its_fields_say():
    """A field is stacked or concatenated in single precision, integers stay what they are."""
    fields = [dict(a=torch.ones(2, 3).half(), b=torch.ones(2, dtype=torch.int16))] * 2
    samples = RAW['data_samples']
    transform = ViewTransform.between([WHOLE] * 2, [WHOLE] * 2)
    made = Batch(fields, transform, samples, (128, 160), [WHOLE] * 2, torch.device('cpu'), 0.3)
    assert made.stack('a').shape == (2, 2, 3)
    assert made.stack('a').dtype == torch.float32
    assert made.concatenate('a').shape == (4, 3)
    assert made.concatenate('b').dtype == torch.int16
    assert made.scaled_padded == (128, 160)
