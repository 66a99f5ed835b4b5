"""What a Parquet file declares of its columns and pages, read before anybody allocates it.

The footer says where the pages of each column are; in front of each page stands what it will be once it is inflated.
The footer's sums are only the writer's word for that. pyarrow's own view of a column's place is not asked: reading a
broken one ends the process (pyarrow 26: a C++ exception that nobody catches).

Source: apache/parquet-format, `parquet.thrift`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from workers.data.compression import MAX_RATIO, UNSUSPICIOUS_BYTES
from workers.data.thrift import BrokenThriftError, Reader

MAGIC = b"PAR1"
#: The largest page that is read, inflated. Writers' defaults are about 1 MiB, the largest about 100 MB.
MAX_PAGE_BYTES = 256 * 1024**2
#: A chunk of lists with more values than this, and more than so many a byte, repeats one value for ever.
_UNSUSPICIOUS_VALUES = 2**24
_MAX_VALUES_A_BYTE = 32
_MAX_FOOTER_BYTES = 16 * 1024**2
_MAX_HEADER_BYTES = 16 * 1024**2
_END = 8  # bytes: the footer's length and MAGIC
_ENCRYPTED_MAGIC = b"PARE"


# Field numbers, by struct
_FILE_ROW_GROUPS = 4
_GROUP_COLUMNS, _GROUP_ROWS = 1, 3
_COLUMN_META_DATA = 3
_META_VALUES, _META_COMPRESSED, _META_DATA_OFFSET, _META_DICTIONARY_OFFSET = 5, 7, 9, 11
_PAGE_INFLATED, _PAGE_COMPRESSED, _PAGE_DATA, _PAGE_DICTIONARY, _PAGE_DATA_V2 = 2, 3, 5, 7, 8
_KIND_VALUES = 1
_DATA_ENCODING, _DATA_V2_ENCODING = 2, 4
# Encodings
_ENTRIES = (2, 8)  # PLAIN_DICTIONARY, RLE_DICTIONARY
_PREFIXED = 7  # DELTA_BYTE_ARRAY


class BrokenLayoutError(Exception):
    """Where something was declared, there is something else."""


class EncryptedError(Exception):
    """The footer is encrypted."""


class TooLargePageError(Exception):
    """A page, or all pages of a column together, would become far larger than what is stored of them."""


class Chunk(NamedTuple):
    """One column of one row group."""

    start: int
    bytes: int
    values: int
    rows: int


def chunks(file: BinaryIO, size: int) -> list[list[Chunk]]:
    """The chunks of each row group, in the order of the columns. Raises BrokenLayoutError, EncryptedError."""
    try:
        return [list(_chunks_of(group, size)) for group in _structs(_footer(file, size), _FILE_ROW_GROUPS)]
    except BrokenThriftError as error:
        raise BrokenLayoutError from error


class Pages(NamedTuple):
    """What the pages of a chunk hold."""

    inflated: int  # bytes, of all pages
    value_bytes: int  # of a value: the largest mean of a page, or what one may have at most where many share bytes
    only_entries: bool  # whether all values are entries of the chunk's dictionary
    prefixed: bool  # whether values begin with what those before began with


def pages(file: BinaryIO, chunk: Chunk, *, is_list: bool) -> Pages:
    """Read the headers of all pages of a chunk. Raises BrokenLayoutError, TooLargePageError."""
    found = list(_pages(file, chunk))
    values = sum(page.values for page in found if page.encoding is not None)
    if is_list and values > max(_UNSUSPICIOUS_VALUES, _MAX_VALUES_A_BYTE * chunk.bytes):
        raise TooLargePageError
    encodings = {page.encoding for page in found} - {None}
    only_entries = encodings <= set(_ENTRIES)
    return Pages(
        inflated=sum(page.inflated for page in found),
        value_bytes=max((page.value_bytes(only_entries=only_entries) for page in found), default=0),
        only_entries=only_entries,
        prefixed=_PREFIXED in encodings,
    )


class _Page(NamedTuple):
    inflated: int
    values: int
    encoding: int | None  # None for a dictionary

    def value_bytes(self, *, only_entries: bool) -> int:
        # Of the entries of a dictionary, and of values that share prefixes, a single one may be as long as the page
        # and come again and again. Where all values are entries, they stay entries in memory.
        shared = self.encoding == _PREFIXED or (self.encoding is None and not only_entries)
        return self.inflated if shared else self.inflated // max(1, self.values)


def _pages(file: BinaryIO, chunk: Chunk) -> Iterator[_Page]:
    position, end = chunk.start, chunk.start + chunk.bytes
    while position < end:
        file.seek(position)
        reader = Reader(file, _MAX_HEADER_BYTES)
        try:
            header = reader.struct()
        except BrokenThriftError as error:
            raise BrokenLayoutError from error
        yield _page(header)
        position += reader.length + _natural(header, _PAGE_COMPRESSED)
    if position > end:
        raise BrokenLayoutError


def _page(header: dict[int, Any]) -> _Page:
    inflated, compressed = _natural(header, _PAGE_INFLATED), _natural(header, _PAGE_COMPRESSED)
    if inflated > MAX_PAGE_BYTES or (inflated > UNSUSPICIOUS_BYTES and inflated > MAX_RATIO * compressed):
        raise TooLargePageError
    for kind, encoding in ((_PAGE_DATA, _DATA_ENCODING), (_PAGE_DATA_V2, _DATA_V2_ENCODING), (_PAGE_DICTIONARY, None)):
        page = header.get(kind)
        if isinstance(page, dict):
            of_data = None if encoding is None else _natural(page, encoding)
            return _Page(inflated, _natural(page, _KIND_VALUES), of_data)
    raise BrokenLayoutError


def _footer(file: BinaryIO, size: int) -> dict[int, Any]:
    if size < len(MAGIC) + _END:
        raise BrokenLayoutError
    file.seek(size - _END)
    end = file.read(_END)
    length, magic = int.from_bytes(end[:4], "little"), end[4:]
    if magic == _ENCRYPTED_MAGIC:
        raise EncryptedError
    if magic != MAGIC or length > min(size - len(MAGIC) - _END, _MAX_FOOTER_BYTES):
        raise BrokenLayoutError
    file.seek(size - _END - length)
    return Reader(io.BytesIO(file.read(length)), _MAX_FOOTER_BYTES).struct()


def _chunks_of(group: dict[int, Any], size: int) -> Iterator[Chunk]:
    rows = _natural(group, _GROUP_ROWS)
    for column in _structs(group, _GROUP_COLUMNS):
        place = column.get(_COLUMN_META_DATA)
        if not isinstance(place, dict):
            raise BrokenLayoutError
        length = _natural(place, _META_COMPRESSED)
        # 0 where there is no such page; the dictionary's is missing where writers don't say 0.
        offsets = [_natural({field: 0, **place}, field) for field in (_META_DATA_OFFSET, _META_DICTIONARY_OFFSET)]
        start = min((offset for offset in offsets if offset), default=len(MAGIC))
        if start < len(MAGIC) or start + length > size:
            raise BrokenLayoutError
        yield Chunk(start, length, _natural(place, _META_VALUES), rows)


def _structs(struct: dict[int, Any], field: int) -> Iterable[dict[int, Any]]:
    found = struct.get(field)
    if not isinstance(found, list) or not all(isinstance(element, dict) for element in found):
        raise BrokenLayoutError
    return found


def _natural(struct: dict[int, Any], field: int) -> int:
    number = struct.get(field)
    if type(number) is not int or number < 0:
        raise BrokenLayoutError
    return number
