"""Scores of pairs: any finite numbers, of which a higher one says that two texts are more alike.

Pairs with scores are for evaluation. Which score is enough to call two texts alike, and train on them as such, is not
for a machine to guess.
"""

from __future__ import annotations

import math
from contextlib import suppress

from workers.data.formats import shown
from workers.data.json_lines import kind
from workers.data.row import Row, RowRefusedError

FOR_EVALUATION = (
    "Its pairs have scores, so not all of them are alike. Name it as validation_file, to evaluate on it. It is not "
    "trained on: for that, keep the pairs that are alike, without the scores, or say data.format: pairs if all are."
)


def score_of(value: object, name: str, *, written: bool) -> float:
    """A value as the finite number that it must be; `written`, it may be a string. Raises RowRefusedError."""
    number = math.nan
    if type(value) in ((int, float, str) if written else (int, float)):
        with suppress(ValueError, OverflowError):
            number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        remedy = "Write 1 or 0." if isinstance(value, bool) else "Change it, or remove the row."
        message = f"{shown(name)} must be a number, not {_found(value, written=written)}. {remedy}"
        raise RowRefusedError("row_invalid_type", message, name)
    return number + 0.0  # which makes -0.0 the 0 that it equals


def _found(value: object, *, written: bool) -> str:
    if type(value) in (int, float):
        return "NaN, infinity or one that is too large"
    if written and isinstance(value, str):
        return shown(value) if value.strip() else "an empty cell"
    return kind(value)


class ScoreFacts:
    """Whether there are two scores."""

    def __init__(self) -> None:
        self.settled = False
        self._first: float | None = None

    def add(self, row: Row) -> None:
        """Take another row into account."""
        if self._first is None:
            self._first = row.score
        self.settled = row.score != self._first

    def refusal(self) -> RowRefusedError | None:
        """Why nothing can be told from the rows, or None."""
        if self.settled:
            return None
        message = "All pairs have one score, so that none is more alike than another. Add pairs with other scores."
        return RowRefusedError("single_score", message, "score")
