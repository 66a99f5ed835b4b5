"""What to tell of a step that gave NaN or infinity.

Errors
└── NonFiniteLossError    the step was not taken
"""

from __future__ import annotations

import numpy as np

from workers.data.prepared import Prepared
from workers.training.batches import Batch
from workers.training.config import TrainingConfig

#: How many rows of a batch that gave NaN are named.
_ROWS_NAMED = 8


class NonFiniteLossError(Exception):
    """The loss or its gradient is NaN or infinite at a step; weights and optimizer are as before the step."""

    code = "non_finite_loss"


def explained(
    what: str, batch: Batch, data: Prepared, config: TrainingConfig, *, step: int, total_steps: int, temperature: float
) -> NonFiniteLossError:
    """The error that says what it was, as "The loss is", where, and what to try."""
    return NonFiniteLossError(
        f"{what} NaN or infinite at step {step} of {total_steps}; the step was not taken. "
        f"Its batch holds {_rows_of(batch, data)} of the training file. "
        f"Most often a learning rate that is too high (it is {config.learning_rate:g}) has driven the weights too far, "
        f"or the temperature is too low (it is {temperature:g}). Try a tenth of the learning rate, "
        "then a higher temperature."
    )


def _rows_of(batch: Batch, data: Prepared) -> str:
    """The rows of the file that a batch was made of, counted from 1, as words."""
    rows = np.unique(np.searchsorted(data.row_starts, batch.items, side="right")).tolist()
    named = ", ".join(map(str, rows[:_ROWS_NAMED]))
    more = len(rows) - _ROWS_NAMED
    return f"rows {named} and {more} more" if more > 0 else f"rows {named}"
