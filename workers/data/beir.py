"""BEIR's three files as pairs: a corpus, queries, and which document is relevant to which query.

corpus.jsonl has `_id`, `text` and perhaps `title`; queries.jsonl has `_id` and `text`; the relevance file (qrels) has
the columns `query-id`, `corpus-id` and `score`, see `workers.data.relevance`. Each score above 0 makes a pair of a
query and of a document's title and text, joined by a space. Source: Thakur et al., "BEIR: A Heterogeneous Benchmark
for Zero-shot Evaluation of Information Retrieval Models", 2021, and its loader.

Ids and texts wait in a temporary SQLite database, so that memory stays small whatever the corpus.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from workers.data import compression, json_lines, relevance, sources, validation
from workers.data.formats import ReadOptions, shown
from workers.data.json_lines import Record
from workers.data.row import FileRefusedError, Row, RowRefusedError
from workers.data.rows import label_of, text_of
from workers.data.sources import Source
from workers.data.validation import FileReport

#: Column → (table, what its texts are called)
_NAMED_IN: Mapping[str, tuple[str, str]] = {
    relevance.QUERY: ("queries", "query"),
    relevance.DOCUMENT: ("corpus", "document"),
}
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


#: What SQLite calls a disk that is full, or fails → what the system does.
_DISK_TROUBLE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
}


class Triple(NamedTuple):
    """Where the three files are."""

    corpus: Path
    queries: Path
    qrels: Path


#: Told of which file how many bytes have been read.
OnRead = Callable[[Path, int], None]


def validate(
    corpus: Path,
    queries: Path,
    qrels: Path,
    *,
    filename: str | None = None,
    on_row: Callable[[int, Row], None] | None = None,
    on_read: OnRead | None = None,
    scratch: Path | None = None,
) -> FileReport:
    """Judge the three files together. Messages say which file a row is of, if it is not the relevance file.

    `filename` is that of the relevance file, as its sender gave it. `on_row` is given each good pair with the number of
    its judgement. `scratch` is where the temporary database goes.

    Raises OSError, whatever `on_read` does, and nothing for any content.
    """
    with _opened(Triple(corpus, queries, qrels), filename, on_read or _ignore, scratch) as source:
        return validation.judge(source, ReadOptions(format="pairs"), on_row)


def rows(
    corpus: Path, queries: Path, qrels: Path, *, filename: str | None = None, scratch: Path | None = None
) -> Iterator[Row]:
    """The pairs, in the order of the relevance file. Raises DatasetError for what `validate` would refuse; OSError."""
    with _opened(Triple(corpus, queries, qrels), filename, _ignore, scratch) as source:
        yield from validation.good_rows(source, ReadOptions(format="pairs"))


@contextmanager
def _opened(triple: Triple, filename: str | None, on_read: OnRead, scratch: Path | None) -> Iterator[Source]:
    with (
        tempfile.TemporaryDirectory(dir=scratch) as folder,
        _telling_disk_trouble(folder),
        closing(sqlite3.connect(Path(folder) / "texts", isolation_level=None)) as database,
    ):
        database.executescript(_SCHEMA)
        database.execute("BEGIN")
        yield Source(_records(database, triple, filename, on_read))


@contextmanager
def _telling_disk_trouble(folder: str) -> Iterator[None]:
    """SQLite has errors of its own for a disk that is full or fails; everybody else knows OSError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        number = _DISK_TROUBLE.get(error.sqlite_errorcode & 0xFF)  # the rest says which call it was
        if number is None:
            raise
        raise OSError(number, os.strerror(number), folder) from error


def _records(database: sqlite3.Connection, triple: Triple, filename: str | None, on_read: OnRead) -> Iterator[Record]:
    """A record for each pair, and what is refused of each of the files."""
    for table, path in (("corpus", triple.corpus), ("queries", triple.queries)):
        yield from _kept(database, table, path, on_read)
    told = partial(on_read, triple.qrels)
    with sources.opened(triple.qrels, filename=filename, options=ReadOptions(), on_read=told) as judgements:
        relevance.refuse_other_columns(judgements)
        for number, record in judgements.records:
            try:
                pair = _pair(database, record)
            except RowRefusedError as refusal:
                yield number, refusal
                continue
            if pair is not None:
                yield number, pair


def _kept(
    database: sqlite3.Connection, table: str, path: Path, on_read: OnRead
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
def _content(path: Path, name: str, on_read: OnRead) -> Iterator[Any]:
    with path.open("rb") as file:
        try:
            yield compression.opened(file, max_bytes=ReadOptions().max_expanded_bytes, on_read=partial(on_read, path))
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
    judged = relevance.judgement(record)
    if not judged.relevant:
        return None
    return {
        "anchor": _named(database, relevance.QUERY, judged.query),
        "positive": _named(database, relevance.DOCUMENT, judged.document),
    }


def _named(database: sqlite3.Connection, column: str, identifier: str) -> str:
    table, noun = _NAMED_IN[column]
    found = database.execute(_SELECT[table], (identifier,)).fetchone()
    if found is None:
        message = f"names the {noun} {shown(identifier)}, which is not there. Add it, or remove the row."
        raise RowRefusedError("unknown_id", message, column)
    if not found[0]:
        message = f"names the {noun} {shown(identifier)}, which is empty. Fill it, or remove the row."
        raise RowRefusedError("row_empty_text", message, column)
    return str(found[0])


def _ignore(_file: Path, _position: int) -> None:
    pass
