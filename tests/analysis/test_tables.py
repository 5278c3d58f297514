"""Markdown."""

from __future__ import annotations

from mmkd.analysis.tables import markdown_table


def test_columns_line_up():
    assert markdown_table([['', 'mAP'], ['teacher', '31.1'], ['me', '4.0']]).splitlines() == [
        '|         |  mAP |',
        '|---------|-----:|',
        '| teacher | 31.1 |',
        '| me      |  4.0 |',
    ]
