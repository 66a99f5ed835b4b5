"""What a Parquet file declares of its pages, read before anybody allocates it.

In front of each page stands a header in Thrift's compact protocol, which says what the page will be once it is
inflated; the footer's sums are only the writer's word for it. Sources: parquet-format, `parquet.thrift` (PageHeader)
and Apache Thrift, `thrift-compact-protocol.md`.
"""

from __future__ import annotations

from typing import Any, BinaryIO, NamedTuple

from workers.data.compression import MAX_RATIO, UNSUSPICIOUS_BYTES

#: The largest page that is read, inflated. Writers' defaults are about 1 MiB, the largest about 100 MB.
MAX_PAGE_BYTES = 256 * 1024**2
#: A chunk of lists with more values than this, and more than so many a byte, repeats one value for ever.
_UNSUSPICIOUS_VALUES = 2**24
_MAX_VALUES_A_BYTE = 32

# Fields of a PageHeader, and in each of its kinds of page the number of values
_INFLATED, _COMPRESSED, _KINDS, _VALUES = 2, 3, (5, 7, 8), 1
# Types of the compact protocol
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_DEEPEST = 8
_MAX_HEADER_BYTES = 16 * 1024**2


class BrokenPageError(Exception):
    """Where a page was declared, there is none."""


class TooLargePageError(Exception):
    """A page, or all pages of a column together, would become far larger than what is stored of them."""


class Chunk(NamedTuple):
    """One column of one row group, where the footer says that it is."""

    start: int
    bytes: int
    is_list: bool


def check(file: BinaryIO, chunk: Chunk) -> None:
    """Read the headers of all pages of a chunk. Raises BrokenPageError, TooLargePageError."""
    position, end, values = chunk.start, chunk.start + chunk.bytes, 0
    while position < end:
        file.seek(position)
        header = _Reader(file)
        page = header.struct()
        inflated, compressed = page.get(_INFLATED), page.get(_COMPRESSED)
        if not (isinstance(inflated, int) and isinstance(compressed, int) and inflated >= 0 <= compressed):
            raise BrokenPageError
        if inflated > MAX_PAGE_BYTES or (inflated > UNSUSPICIOUS_BYTES and inflated > MAX_RATIO * compressed):
            raise TooLargePageError
        values += sum(_values(page.get(kind)) for kind in _KINDS)
        position += header.length + compressed
    if position > end:
        raise BrokenPageError
    if chunk.is_list and values > max(_UNSUSPICIOUS_VALUES, _MAX_VALUES_A_BYTE * chunk.bytes):
        raise TooLargePageError


def _values(kind: Any) -> int:
    number = kind.get(_VALUES) if isinstance(kind, dict) else 0
    if not isinstance(number, int) or number < 0:
        raise BrokenPageError
    return number


class _Reader:
    """Reads one struct; of what is in it, numbers and structs are kept by their field's number."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.length = 0  # bytes read

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The fields of a struct. Raises BrokenPageError."""
        if depth > _DEEPEST:
            raise BrokenPageError
        fields: dict[int, Any] = {}
        field = 0
        while (head := self._byte()) != 0:
            step, kind = head >> 4, head & 0x0F
            field = field + step if step else self._signed()
            fields[field] = self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return None
        if kind == _BYTE:
            return self._byte()
        if kind in (_I16, _I32, _I64):
            return self._signed()
        if kind == _DOUBLE:
            return self._skip(8)
        if kind == _BINARY:
            return self._skip(self._varint())
        if kind in (_LIST, _SET):
            return self._skip_list(depth)
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise BrokenPageError

    def _skip_list(self, depth: int) -> None:
        head = self._byte()
        size, kind = head >> 4, head & 0x0F
        for _ in range(self._varint() if size == 15 else size):
            if kind in (_TRUE, _FALSE):
                self._byte()
            else:
                self._value(kind, depth + 1)

    def _signed(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise BrokenPageError

    def _byte(self) -> int:
        read = self._file.read(1)
        self._took(1)
        if not read:
            raise BrokenPageError
        return read[0]

    def _skip(self, count: int) -> None:
        self._took(count)
        self._file.seek(count, 1)

    def _took(self, count: int) -> None:
        self.length += count
        if self.length > _MAX_HEADER_BYTES:
            raise BrokenPageError
