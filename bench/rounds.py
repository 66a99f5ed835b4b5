"""Timing that is fair on a machine with noise: rounds over everything that is compared, not one thing after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

# Seconds: above LONG the first call is all there is; above WARM it counts as a round, below it only warms up.
LONG = 20.0
WARM = 0.3
FEWEST, MOST = 3, 15
# Seconds of all rounds of one work together, if that leaves FEWEST of them.
BUDGET = 6.0


@dataclass(frozen=True)
class Times:
    """Seconds of one work, by the round they were measured in."""

    by_round: dict[int, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return median(self.by_round.values())


def ratio(over: Times, under: Times) -> float:
    """How many times longer `over` takes: the median over the rounds both were in, if these are FEWEST or more."""
    shared = over.by_round.keys() & under.by_round.keys()
    if len(shared) < FEWEST:
        return over.median / under.median
    return median(over.by_round[number] / under.by_round[number] for number in shared)


def timed(work: Callable[[], Result], synchronize: Callable[[], None]) -> tuple[float, Result]:
    """(seconds, what the work returned)."""
    synchronize()
    started = time.perf_counter()
    result = work()
    synchronize()
    return time.perf_counter() - started, result


def interleaved(
    works: Mapping[Key, Callable[[], object]],
    first: Mapping[Key, float],
    synchronize: Callable[[], None],
    say: Callable[[str], None],
) -> dict[Key, Times]:
    """Time all works in rounds; every second round goes backwards. `first`: seconds each has taken once already.

    Round 0 is that first call. A fast work takes part in MOST further rounds, a slow one in fewer (`_last_round`).
    """
    times = {key: Times({0: first[key]} if first[key] > WARM else {}) for key in works}
    last = {key: _last_round(first[key]) for key in works}
    total = max(last.values())
    for number in range(1, total + 1):
        say(f"round {number} of {total}")
        taking_part = [key for key in works if number <= last[key]]
        for key in taking_part[:: -1 if number % 2 else 1]:
            times[key].by_round[number], _ = timed(works[key], synchronize)
    return times


def _last_round(first: float) -> int:
    if first > LONG:
        return 0
    rounds = min(max(round(BUDGET / first), FEWEST), MOST)
    return rounds - 1 if first > WARM else rounds
