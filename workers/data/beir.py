"""BEIR's three files as pairs: a corpus, queries, and which document is relevant to which query.

corpus.jsonl has `_id`, `text` and perhaps `title`; queries.jsonl has `_id` and `text`; the relevance file (qrels) is
TSV with the columns `query-id`, `corpus-id` and `score`. Each score above 0 makes a pair of a query and of a document's
title and text, joined by a space. Source: Thakur et al., "BEIR: A Heterogeneous Benchmark for Zero-shot Evaluation
of Information Retrieval Models", 2021, and its loader.

Ids and texts wait in a temporary SQLite database, so that memory stays small whatever the corpus.
"""

from __future__ import annotations

import math
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from workers.data import compression, delimited, json_lines, validation
from workers.data.formats import ReadOptions, quoted, shown
from workers.data.json_lines import Record
from workers.data.row import FileRefusedError, Row, RowRefusedError
from workers.data.rows import label_of, text_of
from workers.data.sources import Source
from workers.data.validation import FileReport

_COLUMNS = ("query-id", "corpus-id", "score")
#: Column → (table, what its texts are called)
_NAMED_IN: Mapping[str, tuple[str, str]] = {"query-id": ("queries", "query"), "corpus-id": ("corpus", "document")}
# Nothing is read again after a crash, so that nothing needs to be safe from one. 16 MiB of cache.
_SCHEMA = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA cache_size = -16384;
    CREATE TABLE corpus (id TEXT PRIMARY KEY, text TEXT NOT NULL);
    CREATE TABLE queries (id TEXT PRIMARY KEY, text TEXT NOT NULL);
"""
_INSERT = {
    "corpus": "INSERT OR IGNORE INTO corpus VALUES (?, ?)",
    "queries": "INSERT OR IGNORE INTO queries VALUES (?, ?)",
}
_SELECT = {"corpus": "SELECT text FROM corpus WHERE id = ?", "queries": "SELECT text FROM queries WHERE id = ?"}


class Triple(NamedTuple):
    """Where the three files are."""

    corpus: Path
    queries: Path
    qrels: Path


def validate(corpus: Path, queries: Path, qrels: Path, *, on_read: Callable[[int], None] | None = None) -> FileReport:
    """Judge the three files together. Messages say which file a row is of, if it is not the relevance file.

    Raises OSError, and nothing for any content.
    """
    with _opened(Triple(corpus, queries, qrels), on_read or _ignore) as source:
        return validation.judge(source, ReadOptions(format="pairs"))


def rows(corpus: Path, queries: Path, qrels: Path) -> Iterator[Row]:
    """The pairs, in the order of the relevance file. Raises DatasetError for what `validate` would refuse; OSError."""
    with _opened(Triple(corpus, queries, qrels), _ignore) as source:
        yield from validation.good_rows(source, ReadOptions(format="pairs"))


@contextmanager
def _opened(triple: Triple, on_read: Callable[[int], None]) -> Iterator[Source]:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(sqlite3.connect(Path(folder) / "texts", isolation_level=None)) as database,
    ):
        database.executescript(_SCHEMA)
        database.execute("BEGIN")
        yield Source(_records(database, triple, on_read))


def _records(database: sqlite3.Connection, triple: Triple, on_read: Callable[[int], None]) -> Iterator[Record]:
    """A record for each pair, and what is refused of each of the files."""
    for table, path in (("corpus", triple.corpus), ("queries", triple.queries)):
        yield from _kept(database, table, path, on_read)
    with _content(triple.qrels, "relevance file", on_read) as content:
        judgements = delimited.Table(content, "\t")
        missing = [name for name in _COLUMNS if name not in judgements.columns]
        if missing:
            message = f"The header has no {quoted(missing)}. It must name {quoted(_COLUMNS)}."
            raise FileRefusedError("row_missing_field", message, missing[0])
        for number, record in judgements.records():
            try:
                pair = _pair(database, record)
            except RowRefusedError as refusal:
                yield number, refusal
                continue
            if pair is not None:
                yield number, pair


def _kept(
    database: sqlite3.Connection, table: str, path: Path, on_read: Callable[[int], None]
) -> Iterator[tuple[int, RowRefusedError]]:
    """Put a file of texts into its table. Yields what is refused of it."""
    with _content(path, table, on_read) as content:
        for number, record in json_lines.records(content):
            try:
                if isinstance(record, RowRefusedError):
                    raise record
                identifier, text = _identified(record)
                if database.execute(_INSERT[table], (identifier, text)).rowcount == 0:
                    message = f"has the id {shown(identifier)} of a row before. Remove one of them."
                    raise RowRefusedError("duplicate_id", message, "_id")
            except RowRefusedError as refusal:
                yield number, RowRefusedError(refusal.code, f"({table}) {refusal.message}", refusal.field)


@contextmanager
def _content(path: Path, name: str, on_read: Callable[[int], None]) -> Iterator[Any]:
    with path.open("rb") as file:
        try:
            yield compression.opened(file, max_bytes=ReadOptions().max_expanded_bytes, on_read=on_read)
        except FileRefusedError as refusal:
            raise FileRefusedError(refusal.code, f"({name}) {refusal.message}", refusal.field) from refusal


def _identified(record: Mapping[str, Any]) -> tuple[str, str]:
    """The id and the text of a query or a document, which may be empty as long as no pair needs it."""
    for name in ("_id", "text"):
        if name not in record:
            raise RowRefusedError("row_missing_field", f"has no {shown(name)}. Add it.", name)
    parts = [text_of(record[name], name) for name in ("title", "text") if not _is_blank(record.get(name))]
    return label_of(record["_id"], "_id"), " ".join(parts).strip()


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _pair(database: sqlite3.Connection, record: dict[str, Any] | RowRefusedError) -> dict[str, Any] | None:
    """The texts that a judgement names, None if it names them as irrelevant. Raises RowRefusedError."""
    if isinstance(record, RowRefusedError):
        raise record
    if not _is_relevant(record["score"]):
        return None
    query, document = (_named(database, column, record[column]) for column in _NAMED_IN)
    return {"anchor": query, "positive": document}


def _is_relevant(score: str) -> bool:
    try:
        number = float(score)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RowRefusedError("row_invalid_type", f"'score' must be a number, not {shown(score)}. Change it.", "score")
    return number > 0


def _named(database: sqlite3.Connection, column: str, identifier: str) -> str:
    table, noun = _NAMED_IN[column]
    found = database.execute(_SELECT[table], (text_of(identifier, column),)).fetchone()
    if found is None:
        message = f"names the {noun} {shown(identifier)}, which is not there. Add it, or remove the row."
        raise RowRefusedError("unknown_id", message, column)
    if not found[0]:
        message = f"names the {noun} {shown(identifier)}, which is empty. Fill it, or remove the row."
        raise RowRefusedError("row_empty_text", message, column)
    return str(found[0])


def _ignore(_: int) -> None:
    pass
