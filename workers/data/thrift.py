"""Thrift's compact protocol, as far as Parquet's footers and page headers use it.

Source: Apache Thrift, `doc/specs/thrift-compact-protocol.md`. No schema: a struct is its values by field number.
"""

from __future__ import annotations

from typing import Any, BinaryIO

# Types of the protocol
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_DEEPEST = 16
_LONGEST_VARINT = 10  # bytes


class BrokenThriftError(Exception):
    """The bytes are no struct, or one that is longer or deeper than it may be."""


class Reader:
    """Reads structs from where a file stands, of `max_bytes` in all."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self.length = 0  # bytes read

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The fields of a struct: integers, booleans, bytes, lists, structs; None for the rest.

        Raises BrokenThriftError.
        """
        if depth > _DEEPEST:
            raise BrokenThriftError
        fields: dict[int, Any] = {}
        field = 0
        while (head := self._byte()) != 0:
            step, kind = head >> 4, head & 0x0F
            field = field + step if step else self._signed()
            fields[field] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_BYTE, _TRUE, _FALSE):  # in a list, a boolean is a byte
            return self._byte()
        if kind in (_I16, _I32, _I64):
            return self._signed()
        if kind == _DOUBLE:
            self._bytes(8)
            return None
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind in (_LIST, _SET):
            return self._list(depth + 1)
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise BrokenThriftError

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        size, kind = head >> 4, head & 0x0F
        if depth > _DEEPEST:
            raise BrokenThriftError
        # Each element takes a byte at least, so that a wild size ends with the bytes.
        return [self._value(kind, depth) for _ in range(self._varint() if size == 15 else size)]

    def _signed(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _varint(self) -> int:
        number = 0
        for shift in range(0, 7 * _LONGEST_VARINT, 7):
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise BrokenThriftError

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        self.length += count
        if self.length > self._max_bytes:
            raise BrokenThriftError
        read = self._file.read(count)
        if len(read) < count:
            raise BrokenThriftError
        return read
