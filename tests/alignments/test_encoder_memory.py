"""mmkd/alignments/encoder_memory.py."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from tiny_models import faster_rcnn
from tiny_transformers import transformer

from mmkd.alignments import ClassMap, Step
from mmkd.alignments.encoder_memory import FEATURES
from mmkd.alignments.queries import HEAD, QUERIES
from mmkd.errors import ConfigError

CLASSES = ('cat', 'dog', 'person')


@pytest.fixture
def detr():
    return MODELS.build(transformer('DETR'))


def samples(*sizes, whole=(64, 96), boxes=()):
    made = []
    for size in sizes:
        sample = DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=whole))
        sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4))
        made.append(sample)
    return made


def make_step(student, teacher, *images):
    maps = [torch.zeros(len(images), 1, 2, 3)]
    return Step(
        data_samples=list(images),
        student=student,
        teacher=teacher,
        student_record={FEATURES: maps},
        teacher_record={FEATURES: maps},
        class_map=ClassMap(CLASSES, CLASSES),
    )


def align(kind, student, teacher, **options):
    made = TASK_UTILS.build(dict(type=kind, **options))
    made.check(student, teacher, {})
    return made


def test_tokens_are_compared_with_maps_position_by_position(detr):
    memory, maps = torch.rand(2, 6, 4), torch.rand(2, 4, 2, 3)
    convolutional = MODELS.build(faster_rcnn())
    step = make_step(convolutional, detr, *samples((64, 96), (64, 96)))
    alignment = align('EncoderMemoryAlignment', convolutional, detr)
    (pair,) = alignment([maps, maps[..., :1, :1]], memory, step)
    assert torch.equal(pair.teacher, memory.flatten(0, 1))
    assert torch.equal(pair.student, maps.permute(0, 2, 3, 1).flatten(0, 2))
    assert pair.weight is None


def test_levels_of_an_encoder_are_told_apart(detr):
    step = make_step(detr, detr, *samples((64, 96)))
    step.student_record[FEATURES] = [torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 2, 3)]
    ours, theirs = torch.rand(1, 24 + 6, 4), torch.rand(1, 6, 4)
    (pair,) = align('EncoderMemoryAlignment', detr, detr)(ours, theirs, step)
    assert torch.equal(pair.student, ours[0, 24:])
    with pytest.raises(ConfigError, match='student: .* must have 6 tokens, .*, got 25'):
        align('EncoderMemoryAlignment', detr, detr)(ours[:, :25], theirs, step)
    with pytest.raises(ConfigError, match="LinearConnector', in_channels=3, out_channels=4"):
        align('EncoderMemoryAlignment', detr, detr)(ours[..., :3], theirs, step)


def test_padding_does_not_count(detr):
    """The same places that mmdet masks in the encoder."""
    images = samples((64, 96), (33, 40))
    step = make_step(detr, detr, *images)
    memory = torch.rand(2, 6, 4)
    (pair,) = align('EncoderMemoryAlignment', detr, detr)(memory, memory, step)
    encoder, _ = detr.pre_transformer([torch.zeros(2, 32, 2, 3)], images)
    assert encoder['feat_mask'].any()
    assert torch.equal(pair.weight.reshape(2, 6) == 0, encoder['feat_mask'])


def test_models_without_an_encoder_are_refused(detr):
    plain = MODELS.build(faster_rcnn())
    with pytest.raises(ConfigError, match='must have an encoder, got FasterRCNN.*FeatureAlignment'):
        align('EncoderMemoryAlignment', plain, plain)
    with pytest.raises(ConfigError, match='needs a teacher with decoder queries.*FasterRCNN'):
        align('QueryWeightedFeatureAlignment', detr, plain)


def heads(detr, queries, confidence, boxes):
    """What a teacher records of 8 queries, of which the first are given."""
    embeddings = torch.zeros(2, 1, 8, 4)
    embeddings[-1, 0, : len(queries)] = torch.tensor(queries)
    scores = torch.full((2, 1, 8, 4), -30.0)
    scores[..., -1] = 30.0
    places = torch.full((2, 1, 8, 4), 0.1)
    for index, (score, box) in enumerate(zip(confidence, boxes, strict=True)):
        p = torch.tensor([score, 1e-9, 1e-9, 1 - score])
        scores[-1, 0, index] = p.log()
        places[-1, 0, index] = torch.tensor(box)
    return {QUERIES: embeddings, HEAD: (scores, places)}


@pytest.mark.parametrize('gamma', [0.5, 1.0])
def test_places_count_by_what_good_queries_resemble(detr, gamma):
    """The formula, one query and one place at a time."""
    torch.manual_seed(1)
    memory = torch.rand(1, 6, 4) - 0.3
    queries = [[1.0, 0.5, 0.0, -0.2], [0.0, 1.0, 1.0, 0.0]]
    confidence, boxes = (0.9, 0.4), ((0.5, 0.5, 0.5, 0.5), (0.3, 0.3, 0.2, 0.2))
    step = make_step(
        detr,
        detr,
        *samples((64, 96), boxes=[24.0, 16.0, 72.0, 40.0]),
    )
    step.teacher_record.update(heads(detr, queries, confidence, boxes))
    alignment = align('QueryWeightedFeatureAlignment', detr, detr, gamma=gamma)
    (pair,) = alignment(memory, memory, step)
    # The first box covers [24, 72] x [16, 48]: three quarters of it are labelled; the second
    # [19.2, 38.4] x [12.8, 25.6].
    second = (38.4 - 24) * (25.6 - 16)
    overlaps = (0.75, second / (19.2 * 12.8 + 48 * 24 - second))
    for place in range(6):
        wanted = 0.0
        for query, score, overlap in zip(queries, confidence, overlaps, strict=True):
            cosine = torch.cosine_similarity(memory[0, place], torch.tensor(query), dim=0)
            wanted += score**gamma * overlap ** (1 - gamma) * max(0.0, float(cosine)) ** 2
        assert float(pair.weight[place]) == pytest.approx(wanted, rel=1e-4)


def test_an_image_without_objects_has_nothing_to_look_at(detr):
    step = make_step(detr, detr, *samples((64, 96)))
    step.teacher_record.update(heads(detr, [[1.0] * 4], (0.9,), ((0.5, 0.5, 0.5, 0.5),)))
    memory = torch.rand(1, 6, 4)
    (pair,) = align('QueryWeightedFeatureAlignment', detr, detr)(memory, memory, step)
    assert pair.weight.sum() == 0
    (pair,) = align('QueryWeightedFeatureAlignment', detr, detr, gamma=1)(memory, memory, step)
    assert pair.weight.sum() > 0


def test_maps_of_another_width_than_the_queries_are_refused(detr):
    step = make_step(detr, detr, *samples((64, 96)))
    step.teacher_record.update(heads(detr, [[1.0] * 4], (0.9,), ((0.5, 0.5, 0.5, 0.5),)))
    memory = torch.rand(1, 6, 5)
    with pytest.raises(ConfigError, match="must have 4 channels, .*, got 5.*'neck' or 'encoder'"):
        align('QueryWeightedFeatureAlignment', detr, detr)(memory, memory, step)
    with pytest.raises(ConfigError, match=r'align.gamma: must be in \[0, 1\], got 2'):
        align('QueryWeightedFeatureAlignment', detr, detr, gamma=2)
