"""Which modules are gathered together."""

from __future__ import annotations

from torch import nn

from mmkd.sharding.units import inner_units


def test_units_leave_attention_whole_and_lists_alone():
    attention = nn.MultiheadAttention(8, 2)
    part = nn.Sequential(nn.ModuleList([attention, nn.Linear(8, 8)]), nn.Linear(2, 2))
    assert inner_units(part, min_size=64) == [attention, part[0][1]]
    assert inner_units(part, min_size=1000) == []
