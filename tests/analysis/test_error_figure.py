"""The errors of several detectors as tables and a figure."""

from __future__ import annotations

import pytest

from mmkd.analysis.error_figure import draw_errors, error_table, size_table
from mmkd.analysis.error_kinds import KINDS, SIZES, SUMS


@pytest.fixture
def found():
    """Each kind costs another number of points, and half of that for small objects."""
    values = {
        kind: dict(all=2.0 * i, small=1.0 * i, medium=0.5, large=0)
        for i, kind in enumerate((*KINDS, *SUMS))
    }
    numbers = dict(
        AP50=40.0,
        AP50_by_size=dict(all=40.0, small=None, medium=30.0, large=50.0),
        objects=dict(all=9, small=3, medium=3, large=3),
        dAP=values,
        count={kind: dict(all=7, small=3, medium=2, large=2) for kind in KINDS},
    )
    return dict(student=numbers, distilled=dict(numbers, AP50=45.0))


def test_tables(found):
    lines = error_table(found).splitlines()
    assert [cell.strip() for cell in lines[2].split('|')[1:-1]] == ['AP50', '40.0', '', '45.0', '']
    assert [cell.strip() for cell in lines[4].split('|')[1:-1]] == [
        'dAP localisation',
        *('+2.0', '7') * 2,
    ]
    assert len({len(line) for line in lines}) == 1 and len(lines) == 3 + len(KINDS) + len(SUMS)
    by_size = size_table(found).splitlines()
    assert [cell.strip() for cell in by_size[2].split('|')[1:4]] == ['AP50', '–', '30.0']
    assert [cell.strip() for cell in by_size[4].split('|')[1:5]] == [
        'dAP localisation',
        '+1.0',
        '+0.5',
        '+0.0',
    ]


def test_figure_has_a_bar_for_each_kind_size_and_detector(found):
    figure = draw_errors(found)
    assert len(figure.axes) == 1 + len(SIZES)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == 'all objects (9)' and titles[1].startswith('small, below 32² px')
    for axes, group in zip(figure.axes, ('all', *SIZES), strict=True):
        widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
        expected = [found['student']['dAP'][kind][group] for kind in KINDS]
        assert widths == [expected, expected]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        'student (AP50 40.0)',
        'distilled (AP50 45.0)',
    ]
