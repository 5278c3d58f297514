"""On which images detectors are compared, and by what numbers."""

from __future__ import annotations

import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope
from tiny_training import training_config, write_coco

from mmkd.analysis.comparison import LOWEST_THR, Compared, best_threshold, compare, most_different
from mmkd.errors import ConfigError
from mmkd.visualization import Boxes, ground_truth


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    data = write_coco(tmp_path_factory.mktemp('data') / 'coco', images=5)
    config = training_config({}, data, data).val_dataloader.dataset
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(config)


def detector(dataset, name, finds, score=0.8, false=0.3, **options):
    """Finds the first ``finds[index]`` objects of each image, and one that is not there."""

    def detect(batch):
        index = batch['data_samples'][0].img_id
        truth, count = ground_truth(dataset, index), finds[index]
        boxes = np.concatenate([truth.boxes[:count], [[0, 0, 3, 3]]])
        labels = np.concatenate([truth.labels[:count], [0]])
        return Boxes(boxes, labels, np.array([score] * count + [false]))

    return Compared(name, detect, dataset, **options)


def test_images_of_the_largest_difference_come_first(dataset):
    detectors = [
        detector(dataset, 'student', [3, 3, 1, 0, 3]),
        detector(dataset, 'distilled', [3, 2, 3, 3, 3]),
    ]
    found = most_different(detectors, 2)
    assert found.images == [3, 2]
    assert most_different(detectors, 9).images == [3, 2, 1]
    # Each at the score of its highest F1, where the false alarms are left out.
    assert [each.score_thr for each in detectors] == [0.8, 0.8]
    assert found.scores[3] == [0, 1] and found.scores[2] == [pytest.approx(0.5), 1]
    numbers = found.numbers()
    assert numbers['images_judged'] == 5
    assert [each['id'] for each in numbers['chosen']] == [3, 2]
    assert numbers['chosen'][0]['detectors']['student'] == dict(f1=0, right=0, wrong=0, missed=3)
    assert numbers['chosen'][0]['difference'] == 1
    assert set(numbers['f1_of_all']) == {f'{i}.png' for i in range(5)}


def test_detectors_that_do_not_differ_are_refused(dataset):
    alike = [detector(dataset, name, [2] * 5) for name in 'ab']
    with pytest.raises(
        ConfigError, match='--most-different: a, b have the same F1 on each of 5 images'
    ):
        most_different(alike, 3)


def test_named_images_run_on_no_other(dataset):
    one = detector(dataset, 'one', [1] * 5)
    found = compare([one], [4, 2])
    assert found.images == [4, 2] and sorted(one.found) == [2, 4]
    assert one.score_thr == 0.5
    figure = found.draw()
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert '4.png · 3 objects' in texts and '1 right · 0 wrong · 2 missed' in texts
    assert 'score at least 0.50' in [text.get_text() for text in figure.texts]


def test_a_given_threshold_stays(dataset):
    given = detector(dataset, 'given', [1] * 5, score_thr=0.2)
    most_different([given, detector(dataset, 'other', [3] * 5)], 1)
    assert given.score_thr == 0.2


def test_best_threshold(dataset):
    one = detector(dataset, 'one', [3, 3, 3, 3, 0], score=0.6, false=0.7)
    for index in range(5):
        one.detections(index)
    assert best_threshold(one) == 0.6
    nothing = detector(dataset, 'nothing', [0] * 5)
    for index in range(5):
        nothing.detections(index)
    assert best_threshold(nothing) == LOWEST_THR
