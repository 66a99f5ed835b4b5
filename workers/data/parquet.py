"""Parquet, read by pyarrow in batches of few rows, of those columns only that make rows.

A Parquet file declares sizes in its footer and in front of each page, and libraries allocate what is declared. What
is declared is therefore held to bounds before pyarrow reads any of it. Where texts are stored as entries of a
dictionary, they are read as such: a text of a megabyte that a file holds once and names a thousand times is then one
text in memory. Elsewhere pyarrow would build a dictionary of a whole row group to do so, and texts are read as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from api_schemas.files import MAX_ROW_BYTES
from workers.data import parquet_layout
from workers.data.compression import is_of_the_system, refuse_expansion
from workers.data.formats import NUMBERED, ReadOptions, numbered_negatives, recognise, shown
from workers.data.json_lines import Record, too_long
from workers.data.parquet_layout import BrokenLayoutError, Chunk, EncryptedError, TooLargePageError
from workers.data.row import FileRefusedError, RowRefusedError
from workers.data.rows import MAX_DIMENSION, bytes_of

_MAX_ROWS_AT_ONCE = 4096
_MAX_VALUES_AT_ONCE = 2**18
_MAX_BYTES_AT_ONCE = 32 * 1024**2
_MAX_LISTED_BYTES = 64 * 1024**2
_BUFFER_BYTES = 1024**2
# Of the footer's strings and lists, which pyarrow would otherwise allocate as declared.
_MAX_STRING_BYTES = 16 * 1024**2
_MAX_LIST_LENGTH = 1_000_000
#: What pyarrow raises for broken files: ArrowException and its kin, and whatever a wild size leads to in Python.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, BrokenLayoutError)


class _UnboundedListsError(Exception):
    """The memory that the lists of a column take cannot be bounded."""


class _Plan(NamedTuple):
    """How to read a chunk."""

    rows: int  # at once
    as_entries: bool  # texts as entries of a dictionary


class Table:
    """The columns of a file and its records.

    Raises FileRefusedError if its footer can't be read, and from `records` for whatever cannot be read later.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        with _refusing():
            self._groups = parquet_layout.chunks(file, self._size)
            parquet = self._open([], metadata=None)
            self._metadata: pq.FileMetaData = parquet.metadata
            self._schema: pa.Schema = parquet.schema_arrow
        self.columns: tuple[str, ...] = tuple(self._schema.names)
        repeated = next((name for name in set(self.columns) if self.columns.count(name) > 1), None)
        if repeated is not None:
            raise FileRefusedError("duplicate_key", f"The header names {shown(repeated)} twice. Keep one of them.")

    def records(self, options: ReadOptions, on_read: Callable[[int], None]) -> Iterator[Record]:
        """The records, numbered by their row from 1. `on_read` is told about how many bytes have been read."""
        names = self._wanted(options)
        number = given = 0
        with _refusing():
            for batch in self._batches(names):
                for values in zip(*map(_values, batch.columns), strict=True):
                    number += 1
                    record = _record(dict(zip(names, values, strict=True)))
                    given += 0 if isinstance(record, RowRefusedError) else bytes_of(record)
                    yield number, record
                refuse_expansion(given, self._size, options.max_expanded_bytes)
                on_read(self._size * number // max(number, self._metadata.num_rows))
            if number != self._metadata.num_rows:
                raise BrokenLayoutError

    def _wanted(self, options: ReadOptions) -> list[str]:
        """The columns that make rows, in the file's order. Raises FileRefusedError if one is of a type that can't."""
        fields = recognise(self.columns, options)
        wanted = {*fields.all_names, *(numbered_negatives(self.columns) if fields.negative == NUMBERED else ())}
        for name in wanted:
            found = self._schema.field(name).type
            if not _is_readable(found):
                message = f"The column {shown(name)} holds {found}. Write strings, numbers or lists of them."
                raise FileRefusedError("row_invalid_type", message, name)
        return [name for name in self.columns if name in wanted]

    def _batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """The columns of these names, in their order."""
        columns = [self._metadata.schema.column(index) for index in range(self._metadata.num_columns)]
        wanted = [index for index, column in enumerate(columns) if {column.path, _root(column.path)} & set(names)]
        for number, group in enumerate(self._groups):
            if len(group) != len(columns):
                raise BrokenLayoutError
            plans = {columns[index].path: self._plan(group[index], columns[index]) for index in wanted}
            rows = min(plan.rows for plan in plans.values())
            entries = [path for path, plan in plans.items() if plan.as_entries]
            parquet = self._open(entries, metadata=self._metadata)
            for batch in parquet.iter_batches(rows, row_groups=[number], columns=names, use_threads=False):
                yield batch.select(names)

    def _plan(self, chunk: Chunk, leaf: pq.ColumnSchema) -> _Plan:
        """How to read a chunk such that a batch of it is small. Raises BrokenLayoutError, TooLargePageError."""
        is_list, is_text = leaf.max_repetition_level > 0, leaf.physical_type == "BYTE_ARRAY"
        pages = parquet_layout.pages(self._file, chunk, is_list=is_list)
        if is_list and is_text and not pages.only_entries:
            # Any of its lists may repeat any of its texts many times: they have to be entries in memory, and pyarrow
            # keeps those of the whole row group.
            if pages.inflated > _MAX_LISTED_BYTES or pages.prefixed:
                raise _UnboundedListsError(_root(leaf.path))
            as_entries = True
        else:
            as_entries = is_text and pages.only_entries
        values = max(1, chunk.values // max(1, chunk.rows))
        by_bytes = _MAX_BYTES_AT_ONCE // (values * max(1, pages.value_bytes))
        return _Plan(max(1, min(_MAX_ROWS_AT_ONCE, _MAX_VALUES_AT_ONCE // values, by_bytes)), as_entries)

    def _open(self, entries: list[str], *, metadata: pq.FileMetaData | None) -> pq.ParquetFile:
        self._file.seek(0)
        return pq.ParquetFile(
            pa.PythonFile(self._file, mode="r"),
            metadata=metadata,
            read_dictionary=entries,
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,
            arrow_extensions_enabled=False,
            thrift_string_size_limit=_MAX_STRING_BYTES,
            thrift_container_size_limit=_MAX_LIST_LENGTH,
        )


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what is raised over broken files into refusals."""
    try:
        yield
    except EncryptedError as error:
        message = "The Parquet file is encrypted. Write it without encryption."
        raise FileRefusedError("unsupported_file", message) from error
    except TooLargePageError as error:
        message = "The file declares far more data than it has bytes. Write it again with an ordinary writer."
        raise FileRefusedError("file_expands_too_much", message) from error
    except _UnboundedListsError as error:
        message = (
            f"The lists of texts in {shown(str(error))} can't be read in little memory. Write the file in row groups "
            f"of less than {_MAX_LISTED_BYTES // 1024**2} MiB, with the encodings that are the default."
        )
        raise FileRefusedError("unsupported_file", message) from error
    except _UNREADABLE as error:
        if is_of_the_system(error):
            raise
        message = "The Parquet file is damaged or incomplete. Write it again and compare its size after the upload."
        raise FileRefusedError("file_damaged", message) from error


def _root(path: str) -> str:
    """The column that a leaf belongs to: `neg` of `neg.list.element`."""
    return path.partition(".")[0]


def _is_readable(found: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        found = found.value_type
    elif _is_list(found):
        found = found.value_type.value_type if pa.types.is_dictionary(found.value_type) else found.value_type
    tests = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary,
        pa.types.is_large_binary, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null,
    )  # fmt: skip
    return any(test(found) for test in tests)


def _is_list(found: pa.DataType) -> bool:
    return bool(pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found))


def _values(column: pa.Array) -> Iterator[Any]:
    """A column's values in Python. Lists are made one at a time, and none that is longer than any that is used."""
    if not _is_list(column.type):
        return iter(_flat_values(column))
    return (_list_value(column, index) for index in range(len(column)))


def _list_value(column: pa.Array, index: int) -> Any:
    scalar = column[index]
    if not scalar.is_valid:
        return None
    return _flat_values(scalar.values) if len(scalar.values) <= MAX_DIMENSION else _TOO_LONG


def _flat_values(column: pa.Array) -> list[Any]:
    if not pa.types.is_dictionary(column.type):
        return _decoded(column) if _is_text(column.type) else list(column.to_pylist())
    used = column.indices.unique().drop_null()
    texts: dict[int | None, Any] = dict(zip(used.to_pylist(), _flat_values(column.dictionary.take(used)), strict=True))
    return [texts.get(index) for index in column.indices.to_pylist()]


def _is_text(found: pa.DataType) -> bool:
    return not (pa.types.is_primitive(found) or pa.types.is_null(found))


def _decoded(column: pa.Array) -> list[Any]:
    """Texts, and bytes in place of those that are not UTF-8: Arrow checks none of them."""
    if not _is_binary(column.type):
        try:
            return list(column.to_pylist())
        except UnicodeDecodeError:
            column = column.cast(pa.large_binary())
    return [value if value is None else _decoded_or_bytes(value) for value in column.to_pylist()]


def _is_binary(found: pa.DataType) -> bool:
    return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))


def _decoded_or_bytes(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


_TOO_LONG = object()  # stands for a list that is not even looked at


def _record(record: dict[str, Any]) -> dict[str, Any] | RowRefusedError:
    for name, value in record.items():
        if value is _TOO_LONG:
            message = f"{shown(name)} is a list of more than {MAX_DIMENSION} values. Shorten it."
            return RowRefusedError("row_too_many_texts", message, name)
        if type(value) is bytes or (type(value) is list and bytes in map(type, value)):
            return RowRefusedError("invalid_utf8", f"{shown(name)} is not UTF-8. Write its texts as UTF-8.", name)
    return too_long() if bytes_of(record) > MAX_ROW_BYTES else record
