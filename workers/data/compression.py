"""Compressed files as streams of what they hold, with bounds on what they may become.

Recognised by their first bytes, whatever their name. The standard library reads gzip, since it takes members one
after another as RFC 1952 has them; pyarrow reads zstd (RFC 8878), which the standard library doesn't know. Both hand
out what they are asked for and no more, so that a bomb costs the time until its bound and no memory. A zstd frame
may demand a window; libzstd itself refuses one of more than 128 MiB.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from typing import IO, BinaryIO, Protocol, cast

from workers.data.row import FileRefusedError

#: So much of what a file holds is read whatever its ratio: repetitive text is compressed well.
UNSUSPICIOUS_BYTES = 64 * 1024**2
#: Beyond that, a file that holds more than this times its own size is taken for a bomb.
MAX_RATIO = 200

_AT_ONCE = 256 * 1024
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))
#: First bytes → what it is
_UNREADABLE = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"PK\x05\x06": "an empty zip archive",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"BZh": "compressed with bzip2",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x04\x22\x4d\x18": "compressed with LZ4",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF document",
    b"SQLite format 3": "an SQLite database",
}
_TAR_MAGIC_AT = 257


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def opened(file: BinaryIO, *, max_bytes: int, on_read: Callable[[int], None]) -> io.BufferedReader[io.RawIOBase]:
    """What a file holds, decompressed if it is compressed.

    `on_read` is told how many bytes of the file itself have been read. Raises FileRefusedError, also from the
    stream's reads, if the file is of a kind that isn't read, is damaged, or expands beyond the bounds.
    """
    counted = _Counted(file, on_read)
    plain: io.BufferedReader[io.RawIOBase] = io.BufferedReader(counted, _AT_ONCE)
    stream = _decompressing(plain)
    if stream is None:
        content = plain
    else:
        content = io.BufferedReader(Decompressed(stream, counted, max_bytes), _AT_ONCE)
        _refuse_compressed(content.peek(8))
    _refuse_unreadable(content.peek(512))
    return content


def _decompressing(plain: io.BufferedReader[io.RawIOBase]) -> _Readable | None:
    """A stream of what a compressed file holds, None for any other file."""
    magic = plain.peek(8)
    if magic.startswith(_GZIP):
        return gzip.GzipFile(fileobj=plain)
    if magic.startswith((_ZSTD, *_ZSTD_SKIPPABLE)):
        # Here, since pyarrow takes half a second and 60 MB that a worker needs for few files.
        import pyarrow as pa

        return cast(_Readable, pa.CompressedInputStream(pa.PythonFile(plain, mode="r"), "zstd"))
    return None


def _refuse_compressed(start: bytes) -> None:
    if start.startswith((_GZIP, _ZSTD)):
        raise FileRefusedError("unsupported_file", "The file is compressed twice. Compress it once, or not at all.")


def _refuse_unreadable(start: bytes) -> None:
    what = next((what for magic, what in _UNREADABLE.items() if start.startswith(magic)), None)
    if what is None and start[_TAR_MAGIC_AT:].startswith(b"ustar"):
        what = "a tar archive"
    if what is not None:
        message = f"The file is {what}. Send JSON Lines, CSV, TSV or Parquet, as it is or compressed with gzip or zstd."
        raise FileRefusedError("unsupported_file", message)


class _Counted(io.RawIOBase):
    """A file that tells how far it has been read."""

    def __init__(self, file: IO[bytes], on_read: Callable[[int], None]) -> None:
        self._file = file
        self._on_read = on_read
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._file.read(len(buffer))
        buffer[: len(piece)] = piece
        self.position += len(piece)
        self._on_read(self.position)
        return len(piece)


class Decompressed(io.RawIOBase):
    """A decompressing stream that ends in a refusal where it has given too much, or can't go on."""

    def __init__(self, stream: _Readable, counted: _Counted, max_bytes: int) -> None:
        self._stream = stream
        self._counted = counted
        self._max_bytes = max_bytes
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            piece = self._stream.read(len(buffer))
        except (EOFError, OSError, zlib.error) as error:
            if is_of_the_system(error):
                raise
            raise FileRefusedError("file_damaged", _damage(error)) from error
        buffer[: len(piece)] = piece
        self._given += len(piece)
        refuse_expansion(self._given, self._counted.position, self._max_bytes)
        return len(piece)


def refuse_expansion(given: int, read: int, max_bytes: int) -> None:
    """Raise FileRefusedError if so many bytes given out are too many for so many read from the file."""
    if given > max_bytes or (given > UNSUSPICIOUS_BYTES and given > MAX_RATIO * read):
        bound = f"{max_bytes} bytes" if given > max_bytes else f"{MAX_RATIO} times its size"
        message = f"The file expands to more than {bound}. Send it uncompressed, or in several files."
        raise FileRefusedError("file_expands_too_much", message)


def is_of_the_system(error: Exception) -> bool:
    """Whether a disk failed, and not the content: gzip's and Arrow's errors are OSErrors too, without a number."""
    return isinstance(error, OSError) and error.errno is not None


def _damage(error: Exception) -> str:
    ended = isinstance(error, EOFError) or "truncated" in str(error).lower()
    found = "ends in the midst of its compressed data" if ended else "has damaged compressed data"
    return f"The file {found}. Compress it again and compare its size after the upload."
