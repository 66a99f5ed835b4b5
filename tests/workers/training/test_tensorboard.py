from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.training.test_recorder import report
from workers.training.tensorboard import EventFile, _masked_crc


def fields(message: bytes) -> Iterator[tuple[int, object]]:
    """What a protocol buffer holds, by the numbers of its fields."""
    place = 0

    def varint() -> int:
        nonlocal place
        number, shift = 0, 0
        while True:
            byte = message[place]
            place += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while place < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        content = message[place : place + size]
        place += size
        yield key >> 3, struct.unpack({1: "<d", 5: "<f"}[key & 7], content)[0] if key & 7 in (1, 5) else content


def events(folder: Path) -> list[dict[int, object]]:
    (file,) = folder.iterdir()
    assert file.name.startswith("events.out.tfevents.")
    content = file.read_bytes()
    found = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event, content = content[: 16 + length], content[16 + length :]
        assert event[8:12] == _masked_crc(event[:8])
        assert event[-4:] == _masked_crc(event[12:-4])
        found.append(dict(fields(event[12:-4])))
    return found


def test_the_checksum_is_the_published_one():
    crc = 0xE3069283  # of these digits, in RFC 3720's tables
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _masked_crc(b"123456789") == struct.pack("<I", masked)


def test_steps_are_events_with_a_summary_of_scalars(tmp_path):
    with EventFile(tmp_path / "job") as board:
        board.step(replace(report(1), effective_rank=None))
        board.step(replace(report(300, total_steps=300), effective_rank=7.5))
    version, first, last = events(tmp_path / "job")
    assert version[3] == b"brain.Event:2"
    assert (first[2], last[2]) == (1, 300)
    values = [dict(fields(value)) for _, value in fields(last[5])]
    scalars = {value[1].decode(): value[2] for value in values}
    assert scalars["embeddings/effective_rank"] == 7.5
    assert scalars["train/loss"] == pytest.approx(report(300).loss)
    assert b"effective_rank" not in first[5]


def test_of_a_very_long_training_the_file_holds_an_even_choice(tmp_path):
    with EventFile(tmp_path / "job") as board:
        for step in range(1, 12):
            board.step(report(step, total_steps=50_000))
        board.step(report(50_000, total_steps=50_000))
    assert [event[2] for event in events(tmp_path / "job")] == [0, 5, 10, 50_000]
