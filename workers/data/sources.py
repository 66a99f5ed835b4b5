"""Files of every form as numbered records, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workers.data import compression, json_lines
from workers.data.formats import ReadOptions
from workers.data.json_lines import Record


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
    """Open a file by what it holds. `on_read` is told now and then how many of its bytes have been read.

    Raises FileRefusedError, also in the midst of the records; OSError.
    """
    with path.open("rb") as file:
        content = compression.opened(file, max_bytes=options.max_expanded_bytes, on_read=on_read)
        yield Source(json_lines.records(content))
