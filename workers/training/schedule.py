"""The learning rate of each step: up in a line, then as the schedule says.

With t from 0 to below 1 over the steps behind the warm-up, the peak is multiplied by

    linear    1 − t
    cosine    (1 + cos πt) / 2
    constant  1

Source of the cosine: Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["linear", "cosine", "constant"]

_FACTORS: dict[Schedule, Callable[[float], float]] = {
    "linear": lambda t: 1.0 - t,
    "cosine": lambda t: (1.0 + math.cos(math.pi * t)) / 2,
    "constant": lambda _: 1.0,
}


def learning_rate_at(
    step: int, total_steps: int, warmup_ratio: float, peak: float, schedule: Schedule = "linear"
) -> float:
    """The learning rate of step `step`, from 0.

    No step has a learning rate of 0: it would cost its time for nothing.
    """
    rising = warmup_steps(total_steps, warmup_ratio)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * _FACTORS[schedule]((step - rising) / (total_steps - rising))


def warmup_steps(total_steps: int, warmup_ratio: float) -> int:
    """How many steps the learning rate rises for."""
    return int(warmup_ratio * total_steps)
