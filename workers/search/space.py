"""What a search may choose from, and the trials that are fixed beforehand.

The first trial has the defaults: what `auto` stands for in place of everything that is searched for. If the temperature
is searched for, the first half of the trials differ in it alone (and in the loss, if that is searched for too), at
points that are equally far apart on a logarithmic scale: so they make a curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from api_schemas.defaults import (
    BATCH_SIZE,
    FEWEST_STEPS_PER_EPOCH,
    REDUCTIONS,
    TEMPERATURE,
    TRIALS,
    usual_batch_size,
    usual_learning_rate,
)
from api_schemas.methods import Contrastive

Choices = dict[str, float | int | str]

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 0.5
LOSSES = ("ntxent", "supcon")
BATCH_SIZES = (16, 32, BATCH_SIZE, 128)
#: The learning rate is looked for between its default over this and its default times this.
LEARNING_RATE_FACTOR = 5.0
#: Where a choice stands in `method.contrastive`.
PLACES = {
    "temperature": ("loss", "temperature"),
    "loss": ("loss", "name"),
    "learning_rate": ("hyperparameters", "learning_rate"),
    "batch_size": ("hyperparameters", "batch_size"),
}


@dataclass(frozen=True)
class Space:
    """`defaults` names everything that is searched for; the other fields hold the alternatives."""

    defaults: Choices
    batch_sizes: tuple[int, ...]
    asked_trials: int

    @classmethod
    def of(cls, contrastive: Contrastive, *, rows: int) -> Space:
        """What a resolved method leaves open, for files of `rows` rows that are trained on."""
        length = contrastive.hyperparameters.max_seq_length
        usual: Choices = {
            "temperature": TEMPERATURE,
            "loss": LOSSES[0],
            "learning_rate": usual_learning_rate(
                length if length is None else int(length), from_scratch=contrastive.model.scratch is not None
            ),
            "batch_size": usual_batch_size(rows),
        }
        given = contrastive.model_dump()
        defaults = {name: usual[name] for name, (part, field) in PLACES.items() if given[part][field] == "search"}
        fitting = {size for size in BATCH_SIZES if size * FEWEST_STEPS_PER_EPOCH <= rows}
        sizes = tuple(sorted(fitting | {usual_batch_size(rows)}))
        return cls(defaults, sizes, contrastive.hyperparameters.trials or TRIALS)

    @property
    def is_finite(self) -> bool:
        """Whether all there is could be tried."""
        return not {"temperature", "learning_rate"} & self.defaults.keys()

    @property
    def trials(self) -> int:
        """How many trials are made: no more than there are different ones."""
        return min(self.asked_trials, len(self._all())) if self.is_finite else self.asked_trials

    @property
    def half(self) -> int:
        """Trials before which none is given up, and none follows from another."""
        return (self.trials + 1) // 2

    def planned(self) -> list[Choices]:
        """The choices of the first trials, that of the defaults first."""
        if self.is_finite:
            found = self._all()
        elif "temperature" in self.defaults:
            losses = LOSSES if "loss" in self.defaults and self.half > 1 else (None,)
            points = temperatures(max(1, self.half // len(losses)))
            found = [
                self.defaults | {"temperature": point} | ({} if loss is None else {"loss": loss})
                for point, loss in product(points, losses)
            ]
        else:
            found = [self.defaults]
        # A stable sort: all others stay in their order.
        return sorted(found, key=lambda choices: choices != self.defaults)[: self.trials]

    def _all(self) -> list[Choices]:
        values: dict[str, Sequence[int | str]] = {"loss": LOSSES, "batch_size": self.batch_sizes}
        names = [name for name in values if name in self.defaults]
        return [dict(zip(names, each, strict=True)) for each in product(*(values[name] for name in names))]


def temperatures(count: int) -> list[float]:
    """So many from the lowest to the highest, equally far apart by their logarithm but for the default's neighbour.

    That one is the default itself, so that there is something to compare with.
    """
    points = [float(f"{point:.3g}") for point in np.geomspace(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE, count)]
    nearest = min(range(count), key=lambda index: abs(math.log(points[index] / TEMPERATURE)))
    points[nearest] = TEMPERATURE
    return points


def with_choices(contrastive: Contrastive, choices: Choices) -> Contrastive:
    """The method of one trial: nothing in it is `search` any more."""
    update: dict[str, dict[str, Any]] = {"loss": {}, "hyperparameters": {"trials": None}}
    for name, value in choices.items():
        part, field = PLACES[name]
        update[part][field] = value
    loss = contrastive.loss.model_copy(update=update["loss"])
    if loss.reduction == "auto":
        loss = loss.model_copy(update={"reduction": REDUCTIONS[loss.name]})
    hyperparameters = contrastive.hyperparameters.model_copy(update=update["hyperparameters"])
    return contrastive.model_copy(update={"loss": loss, "hyperparameters": hyperparameters})


def in_words(choices: Choices) -> str:
    """Such as: temperature 0.05, loss supcon."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in choices.items()
    )
