"""When a loss acts."""

from __future__ import annotations

import pytest
from mmengine.logging import MessageHub

from mmkd.distillers import Schedule
from mmkd.errors import ConfigError


def test_always_on_by_default():
    assert [Schedule().factor(now, 10) for now in (0, 3.5, 10)] == [1, 1, 1]


def test_begin_and_end():
    schedule = Schedule(begin=2, end=5)
    assert [schedule.factor(now, 10) for now in (0, 1.99, 2, 4.99, 5, 9)] == [0, 0, 1, 1, 0, 0]


def test_warm_up_rises_from_begin():
    schedule = Schedule(begin=2, warmup=4)
    assert [schedule.factor(now, 10) for now in (1, 3, 4, 6, 9)] == [0, 0.25, 0.5, 1, 1]
    assert (
        0 < schedule.factor(2, 10) < 0.01
    )  # on, so that the teacher runs from the first iteration


@pytest.mark.parametrize(
    'decay, half, quarter', [('linear', 0.5, 0.75), ('cosine', 0.5, 0.8535534)]
)
def test_decay_reaches_zero_at_the_end(decay, half, quarter):
    for schedule in (Schedule(decay=decay), Schedule(decay=decay, end=8)):
        assert schedule.factor(0, 8) == 1
        assert schedule.factor(2, 8) == pytest.approx(quarter)
        assert schedule.factor(4, 8) == pytest.approx(half)
        assert schedule.factor(8, 8) == 0


def test_reads_the_running_training():
    hub = MessageHub.get_instance('training')
    for key, value in dict(iter=60, max_iters=200, max_epochs=10).items():
        hub.update_info(key, value)
    assert Schedule(begin=3)() == 1 and Schedule(end=3)() == 0 and Schedule(begin=3.01)() == 0
    assert Schedule(begin=61, unit='iter')() == 0 and Schedule(begin=60, unit='iter')() == 1


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="got 'step'"):
        Schedule(unit='step')
    with pytest.raises(ConfigError, match="got 'exponential'"):
        Schedule(decay='exponential')
    with pytest.raises(ConfigError, match='begin=3, warmup=0, end=2'):
        Schedule(begin=3, end=2)
