"""Scores of hand-made detections."""

from __future__ import annotations

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmkd.analysis.detections import Sample, relabelled

CAT, DOG = [10.0, 10, 50, 50], [60.0, 60, 90, 90]


def sample(*objects, classes=('cat', 'dog')):
    """A sample whose images each have these objects: (box, label) or (box, label, is ignored)."""
    meta = DetDataSample(metainfo=dict(ori_shape=(100, 100)))
    image = torch.stack([torch.full((4, 4), value) for value in (1, 2, 3)])
    instances = [
        [
            dict(bbox=box, bbox_label=label, ignore_flag=int(bool(ignored)))
            for box, label, *ignored in each
        ]
        for each in objects
    ]
    batches = [dict(inputs=[image], data_samples=[meta]) for _ in objects]
    return Sample(batches, instances, classes)


def found(*detections):
    """Detections in an image: (box, score, label)."""
    boxes, scores, labels = zip(*detections, strict=True) if detections else ([], [], [])
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
        scores=torch.tensor(scores, dtype=torch.float),
        labels=torch.tensor(labels, dtype=torch.long),
    )


def test_scores_are_those_of_coco():
    both = sample([(CAT, 0)], [(DOG, 1)])
    perfect = [found((CAT, 0.9, 0)), found((DOG, 0.8, 1))]
    assert both.score(perfect).map == both.score(perfect).ap50 == pytest.approx(1.0)
    one = [found((CAT, 0.9, 0)), found()]
    assert both.score(one).ap50 == pytest.approx(0.5)
    shifted = [found(([10.0, 10, 50, 40], 0.9, 0)), found((DOG, 0.8, 1))]  # IoU 0.75
    # Of the thresholds 0.5 to 0.95 a cat counts at 0.5 to 0.75: 6 of 10.
    assert both.score(shifted).map == pytest.approx((0.6 + 1) / 2)
    assert both.score(shifted).ap50 == pytest.approx(1.0)


def test_without_classes_names_do_not_matter():
    both = sample([(CAT, 0)], [(DOG, 1)])
    exchanged = [found((CAT, 0.9, 1)), found((DOG, 0.8, 0))]
    assert both.score(exchanged).ap50 == 0
    single = both.without_classes()
    assert single.score(relabelled(exchanged, [0, 0])).ap50 == pytest.approx(1.0)
    assert both.instances[1][0]['bbox_label'] == 1


@pytest.mark.parametrize('objects', [[], [(CAT, 0)]])
def test_nothing_found_scores_nothing(objects):
    assert sample(objects).score([found()]).map == 0
    assert sample([]).score([found((CAT, 0.9, 0))]).map == 0


def test_confidence_is_the_best_score_of_the_right_class_on_each_object():
    two = sample([(CAT, 0), (DOG, 1)], [(CAT, 0, True)], [(DOG, 1)])
    given = [
        found((CAT, 0.4, 0), (CAT, 0.7, 0), (CAT, 0.9, 1), (DOG, 0.8, 0)),
        found((CAT, 0.9, 0)),  # on what is ignored
        found(),
    ]
    assert two.confidence(given).tolist() == pytest.approx([0.7, 0.0, 0.0])


def test_matches_are_sums_of_scores_by_class_of_the_object():
    two = sample([(CAT, 0), (DOG, 1)], [])
    given = [found((CAT, 0.5, 2), (DOG, 0.25, 2), (DOG, 0.5, 0), ([0.0, 0, 5, 5], 0.9, 1)), found()]
    assert two.label_scores(given, 3).tolist() == [[0.0, 0.5], [0.0, 0.0], [0.5, 0.25]]


def test_other_labels_and_those_left_out():
    (changed,) = relabelled([found((CAT, 0.5, 2), (DOG, 0.25, 0), (DOG, 0.5, 1))], [1, -1, 0])
    assert changed.labels.tolist() == [0, 1]
    assert changed.scores.tolist() == [0.5, 0.25] and changed.bboxes.tolist() == [CAT, DOG]


def test_channels_are_exchanged():
    seen = []

    def predict(batch):
        seen.append(batch['inputs'][0][:, 0, 0].tolist())
        return [found()]

    one = sample([(CAT, 0)])
    one.run(predict)
    one.run(predict, swapped=True)
    assert seen == [[1, 2, 3], [3, 2, 1]]


def test_images_are_taken_from_all_of_the_data():
    class Data:
        metainfo = dict(classes=('cat',))

        def __len__(self):
            return 10

        def __getitem__(self, index):
            return dict(inputs=index, data_samples=index)

        def get_data_info(self, index):
            return dict(instances=[index])

    assert Sample.of(Data(), 3).instances == [[0], [3], [6]]
    assert len(Sample.of(Data(), 30)) == 10
