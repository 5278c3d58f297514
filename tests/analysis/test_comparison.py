"""The side-by-side picture: what counts as right, and a picture from real detectors."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from _synthetic_scenes import SceneSettings, prepare_scenes
from mmkd.analysis.comparison import (
    Boxes,
    Column,
    compare,
    draw_comparison,
    ground_truth,
    judge,
    read_image,
    spread,
)
from mmkd.analysis.complexity import build_test_data, load_detector

CONFIG = Path(__file__).parents[2] / 'configs/demo/faster-rcnn_mobilenetv2_fpn.py'


@pytest.fixture(scope='module')
def cfg(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'drawn'
    prepare_scenes(root, SceneSettings(train=1, val=6))
    cfg = Config.fromfile(str(CONFIG))
    cfg.test_dataloader.dataset.data_root = f'{root}/'
    return cfg


def boxes(*rows, scores=None):
    """Rows are x1 y1 x2 y2 label."""
    table = np.array(rows, dtype=float).reshape(-1, 5)
    return Boxes(table[:, :4], table[:, 4].astype(int), scores)


TRUTH = boxes((0, 0, 10, 10, 0), (20, 0, 40, 20, 1))


@pytest.mark.parametrize(
    ('found', 'right', 'hit'),
    [
        (boxes(), [], [False, False]),
        (boxes((0, 0, 10, 10, 0), (20, 0, 40, 20, 1)), [True, True], [True, True]),
        (boxes((0, 0, 10, 10, 1)), [False], [False, False]),  # another class
        (boxes((0, 0, 10, 4.9, 0)), [False], [False, False]),  # overlaps by 0.49
        (boxes((0, 0, 10, 5, 0)), [True], [True, False]),  # by 0.5
        # The same object twice: the second, of the lower score, is wrong.
        (boxes((0, 0, 10, 9, 0), (0, 0, 10, 10, 0)), [True, False], [True, False]),
    ],
)
def test_judge(found, right, hit):
    got_right, got_hit = judge(found, TRUTH)
    assert got_right.tolist() == right
    assert got_hit.tolist() == hit


def test_judge_without_objects():
    right, hit = judge(boxes((0, 0, 10, 10, 0)), boxes())
    assert right.tolist() == [False]
    assert hit.tolist() == []


def test_threshold_keeps_equal_scores_and_sorts():
    found = boxes(
        (0, 0, 1, 1, 0), (0, 0, 2, 2, 1), (0, 0, 3, 3, 2), scores=np.array([0.5, 0.4, 0.9])
    )
    kept = found.above(0.5)
    assert kept.labels.tolist() == [2, 0]
    assert kept.scores.tolist() == [0.9, 0.5]


def test_distinct_keeps_the_best_box_of_a_place():
    found = boxes(
        (0, 0, 10, 10, 0),
        (0, 0, 10, 9, 1),  # the same place as another class
        (0, 0, 10, 4, 2),  # within the first, but overlaps it by less than half
        (20, 20, 30, 30, 0),
        scores=np.array([0.9, 0.8, 0.7, 0.6]),
    )
    assert found.distinct().scores.tolist() == [0.9, 0.7, 0.6]
    assert len(boxes(scores=np.array([])).distinct()) == 0


def test_spread_takes_images_from_everywhere(cfg):
    dataset = build_test_data(cfg)
    chosen = spread(dataset, count=2, objects=2)
    assert chosen == sorted(set(chosen))
    assert all(len(ground_truth(dataset, i)) >= 2 for i in chosen)
    assert len(spread(dataset, count=100, objects=0)) == 6
    assert len(spread(dataset, count=3, objects=99)) == 3  # no such images: any


def test_ground_truth_is_that_of_the_file(cfg):
    dataset = build_test_data(cfg)
    truth = ground_truth(dataset, 0)
    instances = dataset.get_data_info(0)['instances']
    assert truth.boxes.tolist() == [instance['bbox'] for instance in instances]


def test_outcome_shows_in_the_picture(tmp_path):
    """A right, a wrong and a missed box have their own colours, where they belong."""
    image = np.full((100, 100, 3), 128, dtype=np.uint8)
    truth = boxes((10, 10, 40, 40, 0), (60, 60, 90, 90, 0))
    found = boxes((10, 10, 40, 40, 0), (10, 60, 40, 90, 0), scores=np.array([0.9, 0.8]))
    nothing = boxes(scores=np.array([]))
    draw_comparison(
        [image],
        [truth],
        [Column('a', [found]), Column('b', [nothing])],
        ['thing'],
        tmp_path / 'new' / 'out.png',
    )
    picture = np.asarray(Image.open(tmp_path / 'new' / 'out.png').convert('RGB')).astype(int)
    height, width = picture.shape[:2]
    cells = picture[int(0.1 * height) : int(0.8 * height)]  # between titles and key
    thirds = [cells[:, i * width // 3 : (i + 1) * width // 3] for i in range(3)]

    def has(cell, colour):
        return (np.abs(cell - colour).max(axis=2) < 30).sum() > 40

    green, red, yellow = (53, 208, 127), (255, 77, 77), (255, 210, 63)
    assert not any(has(thirds[0], colour) for colour in (green, red, yellow))
    assert has(thirds[1], green) and has(thirds[1], red) and has(thirds[1], yellow)
    assert has(thirds[2], yellow) and not has(thirds[2], green) and not has(thirds[2], red)


def test_compares_detectors_on_images_of_both_orientations(cfg, tmp_path):
    dataset = build_test_data(cfg)
    shapes = {read_image(dataset, i).shape for i in range(len(dataset))}
    assert len(shapes) == 2
    model = load_detector(cfg, None, device='cpu')
    compare(
        {'one': model, 'two': model},
        dataset,
        tmp_path / 'out.png',
        indices=range(3),
        thresholds={'one': 0.0},
    )
    with Image.open(tmp_path / 'out.png') as picture:
        assert picture.width > 600 and picture.height > 600
