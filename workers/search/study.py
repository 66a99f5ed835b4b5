"""Which trial comes next, and whether one is hopeless: Optuna's TPE and its median rule.

Nothing is kept from trial to trial but their outcomes: each proposal has a seed of its own, drawn from the job's. So a
search that goes on after an interruption proposes what it would have proposed.

Sources: Bergstra, Bardenet, Bengio and Kégl, "Algorithms for Hyper-Parameter Optimization", 2011 (TPE); Golovin et al.,
"Google Vizier", 2017 (median rule); Akiba et al., "Optuna", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from workers.search.space import (
    HIGHEST_TEMPERATURE,
    LEARNING_RATE_FACTOR,
    LOSSES,
    LOWEST_TEMPERATURE,
    Choices,
    Space,
)

#: A trial is measured after so many equal parts of its steps.
PARTS = 4

optuna.logging.set_verbosity(optuna.logging.WARNING)  # the job's events tell of trials


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    number: int  # from 0
    choices: Choices
    measured: Mapping[int, float]  # the metric after part 1, 2, … of the steps
    pruned: bool  # hopeless, or failed

    @property
    def value(self) -> float:
        """The metric that it is chosen by; −∞ for one that was given up."""
        return float("-inf") if self.pruned else self.measured[PARTS]


def propose(space: Space, number: int, earlier: Sequence[Outcome], *, seed: int) -> Choices:
    """The choices of trial `number`, from 0, after all `earlier` ones."""
    planned = space.planned()
    if number < len(planned):
        return planned[number]
    trial = _study(space, earlier, seed=_seed(seed, number)).ask(_distributions(space))
    return {name: trial.params[name] for name in space.defaults}


def is_hopeless(space: Space, earlier: Sequence[Outcome], choices: Choices, measured: Mapping[int, float]) -> bool:
    """Whether a trial is below the median of the others at its last part, once half of all trials have ended."""
    study = _study(space, earlier, seed=0)
    study.enqueue_trial(choices)
    trial = study.ask(_distributions(space))
    for part, value in measured.items():
        trial.report(value, part)
    return trial.should_prune()


def best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The first of those with the highest metric; None if all were given up."""
    finished = [outcome for outcome in outcomes if not outcome.pruned]
    return max(finished, key=lambda outcome: outcome.value, default=None)


def _study(space: Space, outcomes: Sequence[Outcome], *, seed: int) -> optuna.Study:
    study = optuna.create_study(
        direction="maximize",
        sampler=TPESampler(seed=seed, n_startup_trials=space.half),
        pruner=MedianPruner(n_startup_trials=space.half),
    )
    study.add_trials([_frozen(space, outcome) for outcome in outcomes])
    return study


def _frozen(space: Space, outcome: Outcome) -> FrozenTrial:
    return optuna.trial.create_trial(
        state=TrialState.PRUNED if outcome.pruned else TrialState.COMPLETE,
        value=None if outcome.pruned else outcome.value,
        params=dict(outcome.choices),
        distributions=_distributions(space),
        intermediate_values=dict(outcome.measured),
    )


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    every: dict[str, BaseDistribution] = {
        "temperature": FloatDistribution(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE, log=True),
        "loss": CategoricalDistribution(LOSSES),
        "batch_size": CategoricalDistribution(space.batch_sizes),
    }
    if "learning_rate" in space.defaults:
        rate = float(space.defaults["learning_rate"])
        every["learning_rate"] = FloatDistribution(rate / LEARNING_RATE_FACTOR, rate * LEARNING_RATE_FACTOR, log=True)
    return {name: every[name] for name in space.defaults}


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
