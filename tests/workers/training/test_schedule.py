from __future__ import annotations

import math
from typing import get_args

import pytest

from workers.training.schedule import Schedule, learning_rate_at


def test_cosine_and_constant_go_on_from_the_peak():
    behind = range(3, 10)
    cosine = [learning_rate_at(step, 10, 0.3, 2.0, "cosine") for step in behind]
    assert cosine == pytest.approx([1 + math.cos(math.pi * (step - 3) / 7) for step in behind])
    assert [learning_rate_at(step, 10, 0.3, 2.0, "constant") for step in behind] == [2.0] * 7


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize(("steps", "warmup_ratio"), [(1, 0.0), (7, 0.5), (100, 0.1)])
def test_every_schedule_rises_to_its_peak_and_is_never_zero(schedule, steps, warmup_ratio):
    rates = [learning_rate_at(step, steps, warmup_ratio, 1e-3, schedule) for step in range(steps)]
    assert min(rates) > 0
    assert max(rates) == 1e-3
    peak = rates.index(1e-3)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
