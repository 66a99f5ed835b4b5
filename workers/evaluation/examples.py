"""Examples that gained or lost by the training, as they are told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from workers.data.row import Input

_LONGEST_TEXT = 200


def most_changed(gains: npt.NDArray[np.floating], count: int) -> tuple[Sequence[int], Sequence[int]]:
    """Which gained and which lost most, the most first, of (n,) gains; at most `count` of each."""
    order = np.argsort(-gains, kind="stable")
    gained = [int(number) for number in order[:count] if gains[number] > 0]
    lost = [int(number) for number in order[::-1][:count] if gains[number] < 0]
    return gained, lost


def told(given: Input, row: int) -> str:
    """A text; of a vector, which nobody can read, where it stands."""
    return shortened(given) if isinstance(given, str) else f"row {row + 1}"


def shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
