"""Training rows: JSON Lines from a file, judged row by row.

All rows of a file are of one kind. Neither torch nor numpy is imported here, since the worker that only
validates uploads does not need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from api_schemas.files import MAX_LISTED_ERRORS, DataFormat, RowError
from workers.data import row as data
from workers.training.rows import EXPECTED, Row, RowRefusedError, numbered_lines, parse_row

_ROWS_BETWEEN_REPORTS = 1000


class DatasetError(Exception):
    """A file that was to be trained on holds a row that cannot be used; the message names it."""


@dataclass(frozen=True)
class FileReport:
    """What validation found."""

    format: DataFormat | None
    rows: int  # good ones
    error_count: int  # refused rows, or 1 if the rows are fine one by one but not as a whole
    errors: list[RowError]  # the first MAX_LISTED_ERRORS of them
    summary: str | None  # why the file can't be used, in a sentence; None if it can

    @property
    def usable(self) -> bool:
        """Whether one can train on the file. One refused row is enough to make it unusable."""
        return self.error_count == 0


# Validation


def validate(path: Path, *, progress: Callable[[int], None] | None = None) -> FileReport:
    """Judge every row of a file and the file as a whole.

    `progress` is told now and then how many bytes have been read. Memory is bounded by a few rows of the
    longest length, but for 100 bytes or so for each label while every label so far occurred once.

    Raises OSError if the file cannot be read, and nothing for any content.
    """
    findings = _Findings()
    with path.open("rb") as file:
        for number, line in numbered_lines(file):
            findings.take(number, line)
            if progress is not None and number % _ROWS_BETWEEN_REPORTS == 0:
                progress(file.tell())
    return findings.report()


@dataclass
class _Findings:
    """What is known of a file after some of its rows."""

    format: DataFormat | None = None
    rows: int = 0
    error_count: int = 0
    errors: list[RowError] = field(default_factory=list)
    whole: _PairFacts | _LabelFacts | None = None

    def take(self, number: int, line: bytes | None) -> None:
        try:
            row = parse_row(line, self.format)
        except RowRefusedError as refusal:
            self._refuse(number, refusal)
            return
        self.rows += 1
        if self.whole is None:
            self.format = row.format
            self.whole = _PairFacts() if row.format == "pairs" else _LabelFacts()
        self.whole.add(row.first, row.second)

    def _refuse(self, number: int | None, refusal: RowRefusedError) -> None:
        self.error_count += 1
        if len(self.errors) < MAX_LISTED_ERRORS:
            message = refusal.message if number is None else f"Row {number}: {refusal.message}"
            self.errors.append(RowError(row=number, field=refusal.field, code=refusal.code, message=message))

    def report(self) -> FileReport:
        summary = None
        if self.error_count:
            bad, every = self.error_count, self.error_count + self.rows
            summary = f"{bad} of {every} rows can't be used; the first is {self.errors[0].message}"
        elif (refusal := self._as_a_whole()) is not None:
            self._refuse(None, refusal)
            summary = refusal.message
        return FileReport(self.format, self.rows, self.error_count, self.errors, summary)

    def _as_a_whole(self) -> RowRefusedError | None:
        if self.whole is None:
            return RowRefusedError("empty_file", f"The file holds no rows. {EXPECTED}")
        return self.whole.refusal()


class _PairFacts:
    """Whether some two pairs have no text in common, without keeping the pairs.

    Two pairs that share a text cannot stand in one batch: each would be a negative of its own positive. Sets
    of at most two elements of which every two meet either all hold one common element or are drawn from
    three elements (a triangle), so the elements common to all and the pairs while there are few decide it.
    """

    def __init__(self) -> None:
        self._common: frozenset[str] | None = None
        self._texts: set[str] = set()
        self._pairs: set[frozenset[str]] = set()
        self._contrast = False

    def add(self, anchor: str, positive: str) -> None:
        if self._contrast:
            return
        pair = frozenset((anchor, positive))
        self._common = pair if self._common is None else self._common & pair
        if len(self._texts) <= 3:
            self._texts |= pair
            self._pairs.add(pair)
        self._contrast = not self._common and (len(self._texts) > 3 or self._some_two_differ())

    def _some_two_differ(self) -> bool:
        return any(one.isdisjoint(other) for one, other in combinations(self._pairs, 2))

    def refusal(self) -> RowRefusedError | None:
        if self._contrast:
            return None
        if len(self._pairs) == 1:
            found = "All rows are the same pair"
        else:
            found = "Any two rows share a text, so none is a negative of another"
        return RowRefusedError("too_few_pairs", f"{found}. Add pairs that have no text in common with these.")


class _LabelFacts:
    """Whether some label occurs twice and whether there are two labels."""

    def __init__(self) -> None:
        # Hashes instead of labels, which may be long. Two labels of one hash (64 bits, keyed anew in each
        # process) would at worst let a file without positives pass.
        self._seen: set[int] = set()
        self._repeated = False

    def add(self, text: str, label: str) -> None:  # noqa: ARG002 (both kinds of facts are fed alike)
        if self._repeated and len(self._seen) > 1:
            return
        key = hash(label)
        self._repeated = self._repeated or key in self._seen
        self._seen.add(key)

    def refusal(self) -> RowRefusedError | None:
        if len(self._seen) == 1:
            message = "All rows have one label, so no text has a negative. Add rows of another label."
            return RowRefusedError("single_label", message, "label")
        if not self._repeated:
            message = "Every label occurs once, so no text has a positive. Give texts that are alike one label."
            return RowRefusedError("no_positives", message, "label")
        return None


# Reading


def rows(path: Path) -> Iterator[data.Row]:
    """The rows of a validated file.

    Raises DatasetError for a row that validation would refuse; OSError.
    """
    for row in _good_rows(path):
        if row.format == "pairs":
            yield data.Row("pairs", (row.first, row.second))
        else:
            yield data.Row("labels", (row.first,), row.second)


def _good_rows(path: Path) -> Iterator[Row]:
    expected: DataFormat | None = None
    with path.open("rb") as file:
        for number, line in numbered_lines(file):
            try:
                row = parse_row(line, expected)
            except RowRefusedError as refusal:
                raise DatasetError(f"Row {number}: {refusal.message}") from refusal
            expected = row.format
            yield row
