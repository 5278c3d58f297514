"""The loss of an image does not depend on the images beside it in the batch."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from tiny_dense import single_stage
from tiny_models import faster_rcnn
from tiny_transformers import transformer
from torch import nn

from mmkd.alignments import ClassMap, Step
from mmkd.alignments.dense_output import HEAD
from mmkd.alignments.encoder_memory import FEATURES
from mmkd.alignments.padding import map_geometry, position_stride, valid_positions
from mmkd.alignments.rpn import OBJECTNESS
from mmkd.distillers import LossEntry
from mmkd.families.dense_heads import dense_head

SMALL, LARGE = (50, 70), (160, 96)
STRIDES = (4, 8, 16, 32, 64)
SCORES, DELTAS = OBJECTNESS.module, 'rpn_head.rpn_reg'


def padded(*sizes):
    """Height and width of a batch, a multiple of 32 as mmdet pads it."""
    return tuple(32 * math.ceil(max(size[axis] for size in sizes) / 32) for axis in range(2))


def samples_of(*sizes):
    whole, found = padded(*sizes), []
    for size in sizes:
        sample = DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=whole))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[3.0, 5.0, size[1], size[0] - 9.0]])
        )
        found.append(sample)
    return found


def cells(size, stride):
    return tuple(math.ceil(length / stride) for length in size)


def maps_of(owner, channels, strides, *sizes, whole=None):
    """Maps of a batch: what an image shows is the same in any batch, padding holds large values."""
    whole, levels = whole or padded(*sizes), []
    for stride in strides:
        level = torch.full((len(sizes), channels, *cells(whole, stride)), 1e4)
        for image, size in enumerate(sizes):
            height, width = cells(size, stride)
            seed = zlib.crc32(repr((owner, size, stride)).encode())
            own = torch.randn(
                channels, height, width, generator=torch.Generator().manual_seed(seed)
            )
            level[image, :, :height, :width] = own
        levels.append(level)
    return levels


class Batch:
    """A loss entry on a batch of images of given sizes, and the gradients of each image."""

    def __init__(self, entry, *sizes, models=(None, None), channels=4, strides=STRIDES, **shared):
        self.entry, self.sizes = LossEntry('loss_kd', entry), sizes
        self.samples = samples_of(*sizes)
        self.models, self.shared = models, shared
        if None not in models:
            self.entry.check(*models, {})
        self.student = maps_of('student', channels, strides, *sizes)
        self.teacher = maps_of('teacher', channels, strides, *sizes)

    def step(self, student_record, teacher_record):
        return Step(self.samples, *self.models, student_record, teacher_record, shared=self.shared)

    def run(self, more_of_teacher=None):
        """The loss, and per image the gradients at the positions that show it."""
        for level in self.student:
            level.requires_grad_()
        align = self.entry.align
        records = (
            {align.student: self.student},
            {align.teacher: self.teacher, **(more_of_teacher or {})},
        )
        loss = self.entry(dict(teacher=self.step(*records)))
        found = torch.autograd.grad(loss, self.student, allow_unused=True)
        return float(loss.detach()), self.of_images([level for level in found if level is not None])

    def of_images(self, levels):
        """Per image, the gradients at the positions that show it; at others they are 0."""
        gradients = []
        for image, sample in enumerate(self.samples):
            own = []
            for level in levels:
                height, width = map_geometry(sample, tuple(level.shape[2:]))[1]
                own.append(level[image, :, :height, :width].flatten())
                assert not level[image, :, height:].any() and not level[image, :, :, width:].any()
            gradients.append(torch.cat(own))
        return gradients


def same_alone_and_beside(make, shares=(0.5, 0.5)):
    """Compare each image alone with the two in one batch, of whose loss each has a share."""
    alone = [make(size).run() for size in (SMALL, LARGE)]
    loss, gradients = make(SMALL, LARGE).run()
    wanted = sum(share * value for share, (value, _) in zip(shares, alone, strict=True))
    assert loss == pytest.approx(wanted, rel=1e-4)
    for share, gradient, (_, (own,)) in zip(shares, gradients, alone, strict=True):
        assert own.abs().sum() > 0
        torch.testing.assert_close(gradient, share * own, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize('levels', [STRIDES, (8,)], ids=['levels of an FPN', 'a single map'])
@pytest.mark.parametrize(
    'loss',
    [
        dict(type='MSE'),
        dict(type='MSE', reduction='sum'),
        dict(type='CWD', tau=2.0),
        dict(type='AttentionTransfer', align=dict(type='FeatureAlignment', same_channels=False)),
        dict(type='FGD', align=dict(type='ForegroundFeatureAlignment')),
    ],
    ids=lambda loss: '-'.join([loss['type'], *loss.get('align', {})]),
)
def test_feature_maps(loss, levels):
    same_alone_and_beside(lambda *sizes: Batch(dict(loss, student='neck'), *sizes, strides=levels))


@pytest.mark.parametrize('scale', [2.0, 1.5])
def test_feature_maps_of_a_teacher_of_larger_images(scale):
    """Of twice the size, other levels have the same sizes; of 1.5 times, maps are resized."""

    strides = STRIDES[:3]  # sizes of coarser maps are too small for a ratio of 1.5

    def make(*sizes):
        batch = Batch(
            dict(type='MSE', reduction='sum', student='neck'),
            *sizes,
            strides=strides,
            scale=(scale, scale),
        )
        larger = [tuple(round(scale * length) for length in size) for size in sizes]
        whole = tuple(round(scale * length) for length in padded(*sizes))
        batch.teacher = maps_of('teacher', 4, strides, *larger, whole=whole)
        if scale == 1.5:  # resizing mixes the last position of the image and the padding beside it
            batch.teacher = [torch.full_like(level, 0.5) for level in batch.teacher]
        return batch

    same_alone_and_beside(make)


def test_padding_can_be_counted():
    entry = dict(
        type='MSE', student='neck', align=dict(type='FeatureAlignment', count_padding=True)
    )
    batch = Batch(entry, SMALL, LARGE)
    for level, other in zip(batch.student, batch.teacher, strict=True):
        level.mul_(0), other.mul_(0)
        other[0, :, -1, -1] = 1.0  # padding of the small image
    records = ({batch.entry.student: batch.student}, {batch.entry.teacher: batch.teacher})
    loss = batch.entry(dict(teacher=batch.step(*records)))
    wanted = sum(1 / (2 * level[0, 0].numel()) for level in batch.student) / len(STRIDES)
    assert float(loss) == pytest.approx(wanted, rel=1e-5)


class Own(nn.Module):
    """A loss of a user that has no mask."""

    def forward(self, student, teacher, weight=None):
        return (student - teacher).square().flatten(1).sum(1).mean()


def test_maps_are_zero_outside_of_the_mask_for_a_loss_without_one():
    with MODELS.switch_scope_and_registry(None) as registry:
        registry.register_module(name='Own', module=Own)
        try:
            same_alone_and_beside(lambda *sizes: Batch(dict(type='Own', student='neck'), *sizes))
        finally:
            registry.module_dict.pop('Own')


def test_proposals_are_not_images():
    """RoI features have four dimensions, too; two proposals are not two images."""
    batch = Batch(dict(type='MSE', student='roi_head.bbox_roi_extractor'), SMALL, LARGE)
    (pair, *_) = batch.entry.align(batch.student, batch.teacher, batch.step({}, {}))
    assert pair.mask is None


@pytest.mark.parametrize('confidence', [None, False, True])
def test_anchors(confidence):
    """Each anchor weighs the same, or the teacher's confidence; a batch is the mean over its anchors."""
    of_class = confidence is None
    layer = SCORES if of_class else DELTAS
    align = dict(type='RPNClassAlignment') if of_class else dict(type='RPNBoxAlignment')
    loss = dict(type='KLDivergence', activation='sigmoid') if of_class else dict(type='SmoothL1')
    if not of_class:
        align['confidence'] = confidence
    model = MODELS.build(faster_rcnn())
    entry = dict(loss, align=align)

    class Anchors(Batch):
        def run(self):
            scores = maps_of('scores', 3, STRIDES, *self.sizes)
            return super().run({} if of_class else {OBJECTNESS: scores})

    def make(*sizes):
        batch = Anchors(entry, *sizes, models=(model, model), channels=3 if of_class else 12)
        assert str(batch.entry.student) == str(batch.entry.teacher) == layer
        return batch

    def weight_of(size):
        scores = maps_of('scores', 3, STRIDES, size)
        total = 0.0
        for level, stride in zip(scores, STRIDES, strict=True):
            height, width = cells(size, stride)
            own = level[..., :height, :width]
            total += float(own.sigmoid().sum()) if confidence else own.numel()
        return total

    weights = [weight_of(size) for size in (SMALL, LARGE)]
    same_alone_and_beside(make, [weight / sum(weights) for weight in weights])


def test_the_memory_of_an_encoder():
    model = MODELS.build(transformer('DETR'))

    class Memory(Batch):
        def run(self):
            step = self.step({FEATURES: self.student}, {FEATURES: self.teacher})
            tokens = [side[0].flatten(2).transpose(1, 2) for side in (self.student, self.teacher)]
            tokens[0].requires_grad_()
            step.student_record[self.entry.student] = tokens[0]
            step.teacher_record[self.entry.teacher] = tokens[1]
            loss = self.entry(dict(teacher=step))
            (gradient,) = torch.autograd.grad(loss, tokens[0])
            gradient = gradient.transpose(1, 2).unflatten(-1, self.student[0].shape[2:])
            return float(loss.detach()), self.of_images([gradient])

    counts = [math.prod(cells(size, 32)) for size in (SMALL, LARGE)]
    entry = dict(type='MSE', align='EncoderMemoryAlignment')
    same_alone_and_beside(
        lambda *sizes: Memory(entry, *sizes, models=(model, model), strides=(32,)),
        [count / sum(counts) for count in counts],
    )


@pytest.mark.parametrize(
    ('length', 'cells', 'stride'),
    [
        (800, 100, 8),
        (800, 13, 64),
        (96, 2, 64),
        (90, 3, 32),
        (50, 1, 64),
        (100, 12, 8),
        (518, 37, 14),
    ],
)
def test_strides_follow_from_sizes(length, cells, stride):
    """Powers of two, of layers that round up or down; of patches of another size, their size."""
    assert position_stride(length, cells) == stride


def test_no_mask_where_nothing_is_padding():
    device = torch.device('cpu')
    assert valid_positions(samples_of((64, 96), (64, 96)), (8, 12), device) is None
    assert valid_positions(samples_of((64, 96), (57, 90)), (8, 12), device) is None
    mask = valid_positions(samples_of((64, 96), (57, 40)), (8, 12), device)
    assert mask[0].all() and mask[1].sum(1).tolist() == [5] * 8


# ------------------------------------------------------------------------------ dense heads

DENSE = {
    'classes': ('ATSS', dict(type='SoftLabelBCE', align=dict(type='DenseClassAlignment'))),
    'all alike': (
        'RetinaNet',
        dict(type='SoftLabelBCE', align=dict(type='DenseClassAlignment', confidence=False)),
    ),
    'quality': (
        'FCOS',
        dict(type='SoftLabelBCE', align=dict(type='DenseCenternessAlignment', confidence=False)),
    ),
    'boxes': ('FCOS', dict(type='L1', align=dict(type='DenseBoxAlignment', confidence=False))),
    'edges': ('GFL', dict(type='KLDivergence', align=dict(type='DenseDistributionAlignment'))),
    'top-scoring': ('GFL', dict(type='L1', align=dict(type='DenseBoxAlignment', num_priors=20))),
    'normalizer': (
        'GFL',
        dict(
            type='SoftLabelBCE',
            align=dict(type='DenseClassAlignment', confidence=False, normalizer='confidence'),
        ),
    ),
}


def dense_pair(kind, config, *sizes, count_padding=False):
    """What an entry compares of the raw outputs of two heads, and per row the image it is of."""
    model = MODELS.build(single_stage(kind))
    head = model.bbox_head
    width = 4 * (getattr(head, 'reg_max', 0) + 1)
    kinds = head.prior_generator.num_base_priors[0]
    widths = (head.cls_out_channels, width, 1)[: 3 if dense_head(head).quality else 2]
    values = []
    for owner in ('student', 'teacher'):
        parts = [maps_of(f'{owner} {w}', kinds * w, STRIDES[1:] + (128,), *sizes) for w in widths]
        for level in parts[1]:
            level.abs_()  # distances
        values.append(tuple(parts))
    align = dict(config['align'], count_padding=count_padding)
    entry = LossEntry('loss_kd', dict(config, align=align))
    entry.check(model, model, {})
    classes = ('cat', 'dog', 'person')
    step = Step(
        samples_of(*sizes),
        model,
        model,
        {entry.align.student: values[0]},
        {HEAD: values[1]},
        class_map=ClassMap(classes, classes),
    )
    (pair,) = entry.align(*values, step)
    return entry, pair


@pytest.mark.parametrize('name', DENSE)
def test_priors_of_dense_heads(name):
    """The sums over priors and their divisors are those of each image alone."""
    kind, config = DENSE[name]
    sums, divisors = [], []
    for sizes in ((SMALL,), (LARGE,), (SMALL, LARGE)):
        entry, pair = dense_pair(kind, config, *sizes)
        weight = pair.weight_sum if pair.weight is not None else len(pair.student)
        sums.append(float(entry.loss(pair.student, pair.teacher, pair.weight) * weight))
        divisors.append(float(pair.divisor))
    if name == 'top-scoring':  # of the whole batch, so compared with itself
        entry, pair = dense_pair(kind, config, SMALL, LARGE)
        assert pair.student.max() < 1e3 and len(pair.student) == 20
        return
    assert divisors[2] == pytest.approx(divisors[0] + divisors[1], rel=1e-5)
    assert sums[2] == pytest.approx(sums[0] + sums[1], rel=1e-3) and sums[2] > 0


def test_priors_on_padding_can_be_counted():
    kind, config = DENSE['all alike']
    _, pair = dense_pair(kind, config, SMALL, LARGE, count_padding=True)
    assert pair.weight is None and pair.divisor == len(pair.student)
