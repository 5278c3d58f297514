"""The side-by-side figure."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mmkd.visualization import Boxes, Column, as_image, draw_panels
from mmkd.visualization.panels import class_colours

GREEN, RED, YELLOW = (53, 208, 127), (255, 77, 77), (255, 210, 63)


def boxes(*rows, scores=None):
    """Rows are x1 y1 x2 y2 label."""
    table = np.array(rows, dtype=float).reshape(-1, 5)
    return Boxes(table[:, :4], table[:, 4].astype(int), scores)


def image(height=100, width=100):
    return np.full((height, width, 3), 128, dtype=np.uint8)


def has(cell, colour):
    return (np.abs(cell.astype(int) - colour).max(axis=2) < 12).sum() > 40


def cells(figure, count):
    """The columns of a figure, without titles and key."""
    drawn = as_image(figure)
    height, width = drawn.shape[:2]
    drawn = drawn[int(0.1 * height) : int(0.8 * height)]
    return [drawn[:, i * width // count : (i + 1) * width // count] for i in range(count)]


def test_outcome_shows_in_the_figure():
    """A right, a wrong and a missed box have their own colours, where they belong."""
    truth = boxes((10, 10, 40, 40, 0), (60, 60, 90, 90, 0))
    found = boxes((10, 10, 40, 40, 0), (10, 60, 40, 90, 0), scores=np.array([0.9, 0.8]))
    columns = [Column('a', [found]), Column('b', [boxes(scores=np.array([]))])]
    first, second, third = cells(draw_panels([image()], [truth], columns, ['thing']), 3)
    assert not any(has(first, colour) for colour in (GREEN, RED, YELLOW))
    assert has(second, GREEN) and has(second, RED) and has(second, YELLOW)
    assert has(third, YELLOW) and not has(third, GREEN) and not has(third, RED)


def test_labels_of_a_class_have_its_colour_in_every_panel():
    truth = boxes((10, 40, 40, 80, 1))
    found = boxes((10, 40, 40, 80, 1), scores=np.array([0.9]))
    figure = draw_panels([image()], [truth], [Column('a', [found])], ['cat', 'dog'])
    cat, dog = (tuple(round(255 * v) for v in each) for each in class_colours()[:2])
    assert all(has(cell, dog) and not has(cell, cat) for cell in cells(figure, 2))
    assert len({tuple(each) for each in class_colours()}) == len(class_colours()) > 20


def test_labels_cover_no_other_label_and_stay_in_the_image():
    crowded = boxes(*((5, 30 + 3 * i, 60, 90, i) for i in range(5)), (70, -4, 99, 50, 0))
    crowded.scores = np.linspace(0.9, 0.4, 6)
    names = ['a long name', 'b long name', 'c long name', 'd long name', 'e long name']
    figure = draw_panels([image()], [crowded], [Column('a', [crowded])], names)
    as_image(figure)
    for axes in figure.axes:
        places = [each.get_bbox_patch().get_window_extent() for each in axes.texts[:-1]]
        assert len(places) == 6
        for one, other in combinations(places, 2):
            shared = one.intersection(one, other)
            assert shared is None or shared.width * shared.height < 2
        inside = axes.get_window_extent()
        assert all(inside.x0 - 1 < p.x0 and p.x1 < inside.x1 + 1 for p in places)
        assert all(inside.y0 - 1 < p.y0 and p.y1 < inside.y1 + 1 for p in places)


def test_a_long_title_is_made_to_fit():
    column = Column('a_very_long_name_of_a_work_directory_0123456789', [boxes(scores=np.array([]))])
    figure = draw_panels([image()], [boxes()], [column], ['thing'])
    (title,) = [text for text in figure.texts if text.get_text() == column.title]
    panel = figure.axes[1].get_window_extent()
    assert title.get_window_extent().width <= panel.width * 1.02


@pytest.mark.parametrize('shape', [(50, 100), (100, 60), (300, 60)])
def test_captions_and_size(shape):
    truth = boxes((10, 10, 40, 40, 0))
    none = boxes(scores=np.array([]))
    columns = [Column('a', [none], 'score at least 0.50')]
    figure = draw_panels([image(*shape)], [truth], columns, ['thing'], ['x.jpg'])
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert 'x.jpg · 1 object' in texts and '0 right · 0 wrong · 1 missed' in texts
    drawn = as_image(figure)
    assert drawn.dtype == np.uint8 and 700 < drawn.shape[1] < 900 and drawn.shape[0] < 700
