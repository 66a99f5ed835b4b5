"""Steps as TensorBoard reads them, without TensorBoard: `tensorboard --logdir` on the folder draws their curves.

A file is a row of records, and a record an `Event`, a protocol buffer of which three fields are needed:

    record    length (8 bytes, little-endian), masked CRC-32C of those 8, the event, masked CRC-32C of the event
    Event     1: wall_time (double), 2: step (int64), 3: file_version (string) or 5: summary (Summary)
    Summary   1: value, repeated: 1: tag (string), 2: simple_value (float)

Sources: TensorFlow's `core/lib/io/record_writer.h`, `core/util/event.proto` and `core/framework/summary.proto`.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from workers.training.trainer import StepReport

#: Tag and the member of StepReport that it shows.
_SHOWN = {
    "train/loss": "loss",
    "train/learning_rate": "learning_rate",
    "train/grad_norm": "grad_norm",
    "train/temperature": "temperature",
    "train/accuracy": "accuracy",
    "embeddings/positive_cosine": "positive_cosine",
    "embeddings/negative_cosine": "negative_cosine",
    "embeddings/alignment": "alignment",
    "embeddings/uniformity": "uniformity",
    "embeddings/effective_rank": "effective_rank",
    "speed/pairs_per_second": "pairs_per_second",
    "speed/tokens_per_second": "tokens_per_second",
}
#: A file has no more steps than this, evenly chosen: about 5 MB.
_MOST_STEPS = 10_000
_VERSION = b"brain.Event:2"
_CASTAGNOLI = 0x82F63B78


class EventFile:
    """A new file in a folder, which is made if it is not there. Each record is written whole; OSError as it comes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() // 1_000_000_000:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb", buffering=0)
        self._file.write(_record(_event(0, _field(3, _VERSION))))

    def step(self, report: StepReport) -> None:
        """Add what a step measured."""
        if report.step % max(1, report.total_steps // _MOST_STEPS) and report.step != report.total_steps:
            return
        values = ((tag, getattr(report, member)) for tag, member in _SHOWN.items())
        summary = b"".join(_field(1, _value(tag, value)) for tag, value in values if value is not None)
        self._file.write(_record(_event(report.step, _field(5, summary))))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _event(step: int, content: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step) + content


def _value(tag: str, value: float) -> bytes:
    return _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes: its number and wire type 2, its length, itself."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _masked_crc(length) + content + _masked_crc(content)


def _masked_crc(content: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    # Rotated and shifted, so that the sum of something that holds a sum is not a sum of its own.
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return struct.pack("<I", masked)


def _crc_of_a_byte(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_CASTAGNOLI if value & 1 else 0)
    return value


_TABLE = [_crc_of_a_byte(value) for value in range(256)]
