"""Relevance files (qrels) as BEIR has them: which document of a corpus is relevant to which query.

A table, or JSON Lines, of `query-id`, `corpus-id` and `score`. The texts are in two other files, so that such a file
holds no rows by itself; `workers.data.beir` makes pairs of the three.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from workers.data.formats import quoted, shown
from workers.data.row import FileRefusedError, RowRefusedError
from workers.data.rows import label_of
from workers.data.scores import score_of
from workers.data.sources import Source

QUERY, DOCUMENT, SCORE = COLUMNS = ("query-id", "corpus-id", "score")
NEEDS_TEXTS = (
    "It is a relevance file: it names texts of a corpus and of queries, and holds none. Say in data.corpus and "
    "data.queries which files hold them; likeness inspect has --corpus and --queries for it."
)


class Judgement(NamedTuple):
    """What one row says."""

    query: str  # an id
    document: str  # an id
    relevant: bool


def recognised(source: Source) -> tuple[bool, Source]:
    """Whether a source holds judgements and nothing else, by its header or its first record; and the whole source."""
    if source.columns is not None:
        return source.cells and _are_named(source.columns), source
    first = next(source.records, None)
    if first is None:
        return False, source
    _, record = first
    whole = replace(source, records=chain([first], source.records))
    return isinstance(record, dict) and _are_named(record), whole


def refuse_other_columns(source: Source) -> None:
    """Raise FileRefusedError if a table's columns, which may be more than are needed, name no texts."""
    if source.columns is None:
        return
    missing = [name for name in COLUMNS if name not in source.columns]
    if missing:
        message = f"The header has no {quoted(missing)}. It must name {quoted(COLUMNS)}."
        raise FileRefusedError("row_missing_field", message, missing[0])
    if not source.cells:
        message = "A relevance file can't be Parquet. Write it as TSV, CSV or JSON Lines."
        raise FileRefusedError("unsupported_file", message)


def judgement(record: Mapping[str, Any] | RowRefusedError) -> Judgement:
    """What a record says. Raises RowRefusedError."""
    if isinstance(record, RowRefusedError):
        raise record
    for name in COLUMNS:
        if name not in record:
            raise RowRefusedError("row_missing_field", f"has no {shown(name)}. Add it.", name)
    ids = label_of(record[QUERY], QUERY), label_of(record[DOCUMENT], DOCUMENT)
    return Judgement(*ids, relevant=score_of(record[SCORE], SCORE, written=True) > 0)


def _are_named(names: Collection[str]) -> bool:
    return len(names) == len(COLUMNS) and set(names) == set(COLUMNS)
