from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from workers.evaluation.early_stopping import EarlyStopping, StoppedEarly


class Course:
    """An encoder whose weight is its step, and whose metric comes from a list."""

    def __init__(self, metrics: Sequence[float], **options: Any) -> None:
        self.encoder = nn.Linear(1, 1)
        self._metrics: Iterator[float] = iter(metrics)
        asked = {"every_steps": 2, "patience": 2, "keep_best": True} | options
        self.watch = EarlyStopping(self.encoder, lambda: next(self._metrics), **asked)
        self.watch.begin(0.1)

    def go(self, first: int, last: int, total: int = 20) -> int:
        """Returns the last step that was taken."""
        for step in range(first, last + 1):
            with torch.no_grad():
                self.encoder.weight.fill_(step)
            try:
                self.watch.after_step(step, total)
            except StoppedEarly:
                return step
        return last


def test_it_stops_when_the_metric_no_longer_rises_and_keeps_the_best() -> None:
    course = Course([0.2, 0.5, 0.4, 0.5, 0.9])

    assert course.go(1, 20) == 8
    assert course.watch.stopped
    assert course.watch.restore_best() == 4
    assert course.encoder.weight.item() == 4
    assert course.watch.history == [(0, 0.1), (2, 0.2), (4, 0.5), (6, 0.4), (8, 0.5)]


def test_a_rise_by_less_than_min_delta_does_not_prolong_training_but_counts_as_the_best() -> None:
    course = Course([0.3, 0.35, 0.32, 0.9], min_delta=0.1)

    assert course.go(1, 20) == 6
    assert course.watch.restore_best() == 4


def test_without_patience_all_steps_are_taken_and_the_last_is_evaluated() -> None:
    course = Course([0.0] * 9, patience=None, every_steps=4)

    assert course.go(1, 10, total=10) == 10
    assert [step for step, _ in course.watch.history] == [0, 4, 8, 10]
    assert not course.watch.stopped


def test_the_last_weights_stay_where_they_are_the_best() -> None:
    course = Course([0.2, 0.3])
    course.go(1, 4, total=4)

    assert course.watch.restore_best() is None


@pytest.mark.parametrize("until", [1, 4, 5, 7])
def test_one_that_goes_on_ends_as_one_that_was_never_interrupted(until: int) -> None:
    metrics = [0.2, 0.5, 0.4, 0.5, 0.9]
    whole = Course(metrics)
    end = whole.go(1, 20)

    first = Course(metrics)
    first.go(1, until)
    second = Course(metrics[until // 2 :])
    second.watch.load_state_dict(first.watch.state_dict())

    assert second.go(until + 1, 20) == end
    assert second.watch.history == whole.watch.history
    assert (second.watch.restore_best(), second.encoder.weight.item()) == (whole.watch.restore_best(), 4)
