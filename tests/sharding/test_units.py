"""Which modules are gathered together."""

from __future__ import annotations

from torch import nn

from mmkd.sharding.units import units_inside


def test_units_leave_attention_whole_and_lists_alone():
    attention = nn.MultiheadAttention(8, 2)
    part = nn.Sequential(nn.ModuleList([attention, nn.Linear(8, 8)]), nn.Linear(2, 2))
    assert units_inside(part, least=64) == [attention, part[0][1]]
    assert units_inside(part, least=1000) == []
