"""Pairing classes by name."""

from __future__ import annotations

import pytest
import torch
from mmdet.datasets import CocoDataset, VOCDataset

from mmkd.alignments import ClassMap
from mmkd.errors import ConfigError

VOC, COCO = VOCDataset.METAINFO['classes'], CocoDataset.METAINFO['classes']


def test_every_voc_class_is_found_in_coco_and_back():
    class_map = ClassMap(VOC, COCO)
    pairs = {
        VOC[i]: COCO[j]
        for i, j in zip(class_map.student_index, class_map.teacher_index, strict=True)
    }
    assert len(pairs) == 20
    different = {name: other for name, other in pairs.items() if name != other}
    assert different == {
        'aeroplane': 'airplane',
        'diningtable': 'dining table',
        'motorbike': 'motorcycle',
        'pottedplant': 'potted plant',
        'sofa': 'couch',
        'tvmonitor': 'tv',
    }


def test_the_missing_probability_goes_to_the_background():
    class_map = ClassMap(('dog', 'cat'), ('cat', 'horse', 'dog', 'cow'))
    scores = torch.randn(6, 5)
    p = scores.softmax(-1)
    aligned = class_map.teacher_logits(scores, softmax=True).softmax(-1)
    expected = torch.stack([p[:, 2], p[:, 0], p[:, 1] + p[:, 3] + p[:, 4]], 1)
    assert torch.allclose(aligned, expected, atol=1e-6)


def test_or_is_dropped_and_the_rest_renormalised():
    class_map = ClassMap(('dog', 'cat'), ('cat', 'horse', 'dog'), unmapped='drop')
    scores = torch.randn(6, 4)
    p = scores.softmax(-1)
    kept = torch.stack([p[:, 2], p[:, 0], p[:, 3]], 1)
    aligned = class_map.teacher_logits(scores, softmax=True).softmax(-1)
    assert torch.allclose(aligned, kept / kept.sum(1, keepdim=True), atol=1e-6)


def test_a_sigmoid_head_keeps_only_the_shared_outputs():
    class_map = ClassMap(('dog', 'cat'), ('cat', 'horse', 'dog'))
    scores = torch.randn(2, 3, 4, 5)
    aligned = class_map.teacher_logits(scores, softmax=False, axis=1)
    assert torch.equal(aligned, scores[:, [2, 0]])


def test_same_classes_cost_no_copy_but_another_order_is_sorted():
    scores = torch.randn(3, 3)
    assert ClassMap(('a', 'b'), ('a', 'b')).teacher_logits(scores, softmax=True) is scores
    swapped = ClassMap(('a', 'b'), ('b', 'a')).teacher_logits(scores, softmax=True)
    assert torch.allclose(swapped, scores[:, [1, 0, 2]])


def test_a_student_class_the_teacher_lacks_is_an_error_unless_excluded():
    with pytest.raises(
        ConfigError, match=r"no class for unicorn \(it has cat, dog\).*exclude=\['unicorn'\]"
    ):
        ClassMap(('cat', 'unicorn'), ('cat', 'dog'))
    class_map = ClassMap(('cat', 'unicorn', 'dog'), ('dog', 'cat'), exclude=['unicorn'])
    scores = torch.randn(4, 4)
    assert torch.equal(class_map.student_logits(scores, softmax=True), scores[:, [0, 2, 3]])
    labels = torch.tensor([0, 1, 2, 3])
    assert class_map.shared_index(labels).tolist() == [0, -1, 1, 2]
    assert class_map.teacher_label(torch.tensor([0, 1])).tolist() == [1, 0]
    assert class_map.student_label(torch.tensor([0, 1])).tolist() == [0, 2]


def test_the_message_for_a_missing_class_is_short_and_lists_similar_names():
    with pytest.raises(ConfigError) as error:
        ClassMap(('persn',), COCO)
    assert 'no class for persn; near: person' in str(error.value)
    assert '80 in all' in str(error.value) and len(str(error.value)) < 400
    with pytest.raises(ConfigError, match='no class for lorry; near: truck'):
        ClassMap(('lorry',), COCO, synonyms=dict(lorry='truk'))


def test_config_mistakes_are_named():
    with pytest.raises(
        ConfigError, match='class_map.exclude: must name classes of the student .*got horse'
    ):
        ClassMap(('cat',), ('cat',), exclude=['horse'])
    with pytest.raises(ConfigError, match='class_map.exclude: must leave a class to compare.*cat'):
        ClassMap(('cat',), ('dog',), exclude=['cat'])
    with pytest.raises(ConfigError, match="tv and tvmonitor both match the teacher's class tv"):
        ClassMap(('tv', 'tvmonitor'), ('tv',))
    with pytest.raises(ConfigError, match="class_map.unmapped: must be one of .*got 'ignore'"):
        ClassMap(('cat',), ('cat',), unmapped='ignore')
    with pytest.raises(
        ConfigError, match='teacher: .* scores of 2 classes and the background, got 4'
    ):
        ClassMap(('a', 'b'), ('a', 'b')).teacher_logits(torch.zeros(1, 4), softmax=True)


def test_own_synonyms_come_first():
    class_map = ClassMap(('pet',), ('cat', 'dog'), synonyms=dict(pet='dog'))
    assert class_map.teacher_index == [1]
