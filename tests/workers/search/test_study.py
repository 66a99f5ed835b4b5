from __future__ import annotations

import math
from dataclasses import replace

import pytest

from workers.search import study
from workers.search.space import Choices, Space
from workers.search.study import PARTS, Outcome

SPACE = Space({"temperature": 0.05, "loss": "ntxent", "learning_rate": 5e-5}, (64,), asked_trials=10)


def outcome(number: int, choices: Choices) -> Outcome:
    """The nearer its temperature to 0.1, the better."""
    value = -abs(math.log(float(choices["temperature"]) / 0.1))
    return Outcome(number, choices, {part: value * part for part in range(1, PARTS + 1)}, pruned=False)


def searched(seed: int, begun: list[Outcome] | None = None) -> list[Outcome]:
    outcomes = list(begun or [])
    while len(outcomes) < SPACE.trials:
        number = len(outcomes)
        outcomes.append(outcome(number, study.propose(SPACE, number, outcomes, seed=seed)))
    return outcomes


def test_the_same_seed_makes_the_same_trials(capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = searched(7)

    assert searched(7) == outcomes
    assert searched(8) != outcomes
    assert capfd.readouterr() == ("", ""), "events tell of trials; Optuna says nothing"


@pytest.mark.parametrize("ended", [1, 5, 9])
def test_a_search_that_goes_on_makes_the_trials_it_would_have_made(ended: int) -> None:
    outcomes = searched(7)

    assert searched(7, outcomes[:ended]) == outcomes


def test_the_trials_after_the_curve_stay_within_bounds_and_leave_its_points() -> None:
    curve, rest = searched(7)[:4], searched(7)[5:]

    assert all(0.01 <= float(each.choices["temperature"]) <= 0.5 for each in rest)
    assert all(1e-5 <= float(each.choices["learning_rate"]) <= 2.5e-4 for each in rest)
    assert not {each.choices["temperature"] for each in curve} & {each.choices["temperature"] for each in rest}


def test_only_what_is_below_the_median_is_given_up_and_nothing_before_half_of_the_trials() -> None:
    outcomes = searched(7)
    choices = outcomes[-1].choices
    medians = sorted(each.measured[1] for each in outcomes[:5])

    assert study.is_hopeless(SPACE, outcomes[:5], choices, {1: medians[0] - 1})
    assert not study.is_hopeless(SPACE, outcomes[:5], choices, {1: medians[-1]})
    assert not study.is_hopeless(SPACE, outcomes[:4], choices, {1: medians[0] - 1})


def test_what_was_given_up_is_never_the_best() -> None:
    outcomes = searched(7)
    best = study.best(outcomes)
    assert best is not None

    others = [replace(each, pruned=True) if each is best else each for each in outcomes]

    assert study.best(others) not in (None, best)
    assert study.best([replace(each, pruned=True) for each in outcomes]) is None
