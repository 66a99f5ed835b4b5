"""The texts of rows as an encoder with prompts reads them in training."""

from __future__ import annotations

from collections.abc import Iterable

from encoders.prompts import Prompts
from workers.data.row import Row

#: Formats in which the first text of a row asks and the others answer, or should not.
_DIRECTED = ("pairs", "scored_pairs", "triplets")


def prompted(rows: Iterable[Row], prompts: Prompts) -> list[str]:
    """All texts of the rows, in order, each behind its prompt.

    An anchor is a query, what stands beside it a document. Where rows have no direction all texts are read as a
    text of which nothing is said.
    """
    asks, answers, neither = prompts.of("query"), prompts.of("document"), prompts.of(None)
    texts = []
    for row in rows:
        directed = row.format in _DIRECTED
        for place, text in enumerate(row.inputs):
            before = (answers if place else asks) if directed else neither
            texts.append(f"{before}{text}")
    return texts
