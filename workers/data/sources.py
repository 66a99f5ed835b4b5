"""Files of every form as numbered records, in bounded memory.

What a file is, its first bytes say; its name is asked only where they leave doubt.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from workers.data import compression, delimited, json_lines
from workers.data.formats import ReadOptions
from workers.data.json_lines import Record
from workers.data.row import FileRefusedError

_LONGEST_HEADER = 64 * 1024
_COPIED_AT_ONCE = 1024 * 1024
_COMPRESSED = (".gz", ".zst")
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_TSV = (".tsv", ".tab")
_CSV = ".csv"
_PARQUET = (b"PAR1", b"PARE")  # the second where the footer is encrypted
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Source:
    """A file that is open for reading, once."""

    records: Iterator[Record]
    columns: tuple[str, ...] | None = None  # of a table; None where each record has names of its own
    cells: bool = False  # whether values are strings throughout, with lists written as JSON


@contextmanager
def opened(
    path: Path, *, filename: str | None, options: ReadOptions, on_read: Callable[[int], None]
) -> Iterator[Source]:
    """Open a file as what it is. `on_read` is told now and then how many of its bytes have been read.

    Raises FileRefusedError, also in the midst of the records; OSError.
    """
    with path.open("rb") as file:
        content = compression.opened(file, max_bytes=options.max_expanded_bytes, on_read=on_read)
        start = content.peek(_LONGEST_HEADER)
        if start.startswith(_PARQUET):
            with _seekable(content, file, options.scratch) as whole:
                # Once it is decompressed, all of the file has been read.
                yield _parquet(whole, options, on_read if whole is file else lambda _: on_read(file.tell()))
            return
        if start.startswith(_WIDE_MARKS):
            raise FileRefusedError("invalid_utf8", "The file is UTF-16. Save it as UTF-8.")
        first, second = _first_lines(start)
        if first.startswith("["):
            message = "The file is a JSON array. Write one object a line, without brackets and commas around them."
            raise FileRefusedError("unsupported_file", message)
        delimiter = _delimiter(first, second, _extension(filename), options)
        if delimiter is not None:
            table = delimited.Table(content, delimiter)
            yield Source(table.records(), table.columns, cells=True)
        else:
            yield Source(json_lines.records(content))


def _parquet(file: BinaryIO, options: ReadOptions, on_read: Callable[[int], None]) -> Source:
    # Here, since pyarrow takes half a second and 60 MB that a worker needs for few files.
    from workers.data import parquet

    table = parquet.Table(file)
    return Source(table.records(options, on_read), table.columns)


@contextmanager
def _seekable(content: io.BufferedReader[Any], file: BinaryIO, scratch: Path | None) -> Iterator[BinaryIO]:
    """The file itself, or what it holds decompressed in a file without a name: Parquet is read from its end."""
    if not isinstance(content.raw, compression.Decompressed):
        yield file
        return
    with tempfile.TemporaryFile(dir=scratch) as whole:
        shutil.copyfileobj(content, whole, _COPIED_AT_ONCE)
        yield whole


def _extension(filename: str | None) -> str:
    """What a name ends with, such as `.csv`, below what says how it is compressed."""
    suffixes = [suffix.lower() for suffix in PurePath(filename or "").suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _first_lines(start: bytes) -> tuple[str, str]:
    """The first two lines that are not blank, as far as they can be seen, without white space around them."""
    text = start.removeprefix(_BYTE_ORDER_MARK).decode("utf-8", "replace")
    lines = [line.strip(" ") for line in re.split("[\r\n]", text) if line and not line.isspace()]
    first, second, *_ = [*lines[:2], "", ""]
    return first, second


def _delimiter(first: str, second: str, extension: str, options: ReadOptions) -> str | None:
    """The delimiter of CSV or TSV, None for JSON Lines."""
    if not first or first.startswith("{"):
        return None
    if extension in _TSV:
        return "\t"
    guess = delimited.guess(first, options)
    if guess.known or extension == _CSV:
        return guess.delimiter
    if extension in _JSON_LINES:
        return None
    # A table whose header tells nothing, or JSON Lines whose first line is broken.
    return guess.delimiter if guess.cells > 1 and not second.startswith("{") else None
