"""A whole file: what is good in it, what is refused, and whether it can be trained on.

One refused row is enough to make a file unusable: a dataset is used as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api_schemas.files import MAX_LISTED_ERRORS, DataFormat, FileFormat, RowError
from workers.data import relevance, sources
from workers.data.formats import EXPECTED, KNOWN, ReadOptions, quoted
from workers.data.recurrence import Recurrence
from workers.data.row import FileRefusedError, Input, RefusedError, Row, RowRefusedError
from workers.data.rows import RowMaker
from workers.data.scores import FOR_EVALUATION, ScoreFacts
from workers.data.sources import Source

#: The most refused rows listed over all kinds, of each of which MAX_LISTED_ERRORS are. Only a file that has its
#: negatives in hundreds of columns has more kinds than this allows.
MAX_LISTED_OF_ALL_KINDS = 40 * MAX_LISTED_ERRORS

#: A kind of refusal: its code, and the field that is wrong if it is one field.
Kind = tuple[str, str | None]

_MOST_SHOWN = 6
_ROW_NOUNS: Mapping[DataFormat, str] = {"views": "views", "texts": "text"}


class DatasetError(Exception):
    """A file that was to be trained on holds a row that cannot be used; the message names it."""


class StoppedError(Exception):
    """Whoever asked for the validation wants it no more."""


@dataclass(frozen=True)
class FileReport:
    """What validation found."""

    format: FileFormat | None
    rows: int  # good ones, as training counts them: a record with three positives is three
    error_count: int  # refused records, or 1 if they are fine one by one but not as a whole
    errors: list[RowError]  # the first MAX_LISTED_ERRORS of each kind, in the file's order
    summary: str | None  # why the file can't be used, or not by itself, in a sentence; None if it can
    counts: dict[Kind, int] = field(default_factory=dict)  # of all refusals

    @property
    def usable(self) -> bool:
        """Whether the file can be used, if only to evaluate on. One refused row is enough to make it unusable."""
        return self.error_count == 0


def validate(
    path: Path,
    *,
    filename: str | None = None,
    options: ReadOptions | None = None,
    on_row: Callable[[int, Row], None] | None = None,
    progress: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    scratch: Path | None = None,
) -> FileReport:
    """Judge every row of a file and the file as a whole.

    `filename` is the name that the sender gave it; only its extension counts, and only where the content leaves
    doubt. `on_row` is given each good row with its record's number. `progress` is told now and then how many bytes
    have been read, and `should_stop` is asked as often. `scratch` is where temporary files go, None for the system's
    directory.

    Raises StoppedError; OSError if the file cannot be read or there is no room for temporary files; and nothing for
    any content.
    """

    def on_read(position: int) -> None:
        if progress is not None:
            progress(position)
        if should_stop is not None and should_stop():
            raise StoppedError

    options = options or ReadOptions()
    try:
        with sources.opened(path, filename=filename, options=options, on_read=on_read) as source:
            of_judgements, source = relevance.recognised(source)
            if of_judgements and options.as_recognised:
                return _judge_judgements(source)
            return judge(source, options, on_row, scratch=scratch)
    except FileRefusedError as refusal:
        return FileReport(None, 0, 1, [_error(None, refusal)], refusal.message, {(refusal.code, refusal.field): 1})


def judge(
    source: Source,
    options: ReadOptions,
    on_row: Callable[[int, Row], None] | None = None,
    *,
    scratch: Path | None = None,
) -> FileReport:
    """Judge every row of a source and the source as a whole; good rows go to `on_row`. Raises what its reading does."""
    with ExitStack() as stack:
        findings = _Findings(Recurrence(stack, scratch=scratch))
        try:
            findings.read(source, options, on_row)
        except FileRefusedError as refusal:
            findings.refuse(None, refusal)
        return findings.report()


def _judge_judgements(source: Source) -> FileReport:
    """Judge a relevance file by itself; whether the texts that it names are there is asked where they are."""
    with ExitStack() as stack:
        findings = _Findings(Recurrence(stack, scratch=None), format="relevance")
        try:
            findings.read_judgements(source)
        except FileRefusedError as refusal:
            findings.refuse(None, refusal)
        return findings.report()


def rows(path: Path, *, filename: str | None = None, options: ReadOptions | None = None) -> Iterator[Row]:
    """The rows of a file that was found usable, with the same `filename` and `options`.

    Raises DatasetError for what validation would refuse, once it is reached; OSError.
    """
    options = options or ReadOptions()
    try:
        with sources.opened(path, filename=filename, options=options, on_read=lambda _: None) as source:
            yield from good_rows(source, options)
    except FileRefusedError as refusal:
        raise DatasetError(refusal.message) from refusal


def good_rows(source: Source, options: ReadOptions) -> Iterator[Row]:
    """The rows of a source that was found usable. Raises DatasetError."""
    try:
        maker = _maker(source, options)
        for number, record in source.records:
            yield from _rows_of(maker, number, record)
    except FileRefusedError as refusal:
        raise DatasetError(refusal.message) from refusal


def _maker(source: Source, options: ReadOptions) -> RowMaker:
    """Raises FileRefusedError if a table's columns make no row."""
    try:
        return RowMaker(options, columns=source.columns, cells=source.cells)
    except RowRefusedError as refusal:
        message = f"The header {refusal.message}"
        if not options.columns and KNOWN.isdisjoint(source.columns or ()):
            message = (
                f"The header has {quoted((source.columns or ())[:_MOST_SHOWN])}. It must name the columns, such as "
                "'anchor' and 'positive' or 'text' and 'label'; data.columns tells other names."
            )
        raise FileRefusedError(refusal.code, message, refusal.field) from refusal


def _rows_of(maker: RowMaker, number: int, record: dict[str, Any] | RowRefusedError) -> list[Row]:
    try:
        if isinstance(record, RowRefusedError):
            raise record
        return maker.rows(record)
    except RowRefusedError as refusal:
        raise DatasetError(f"Row {number}: {refusal.message}") from refusal


@dataclass
class _Findings:
    """What is known of a file after some of its records."""

    labels: Recurrence
    format: FileFormat | None = None
    records: int = 0  # good ones
    rows: int = 0
    error_count: int = 0
    errors: list[RowError] = field(default_factory=list)
    counts: dict[Kind, int] = field(default_factory=dict)
    whole: _ContrastFacts | _LabelFacts | ScoreFacts | None = None

    def read(self, source: Source, options: ReadOptions, on_row: Callable[[int, Row], None] | None) -> None:
        """Take all records. Raises FileRefusedError where they end too early."""
        maker = _maker(source, options)
        for number, record in source.records:
            if isinstance(record, RowRefusedError):
                self.refuse(number, record)
                continue
            try:
                found = maker.rows(record)
            except RowRefusedError as refusal:
                self.refuse(number, refusal)
                continue
            self.records += 1
            self.rows += len(found)
            if self.whole is None:
                self.format = maker.format
                self.whole = self._facts_on(found[0])
            if not self.whole.settled:
                for row in found:
                    self.whole.add(row)
            if on_row is not None:
                for row in found:
                    on_row(number, row)

    def _facts_on(self, row: Row) -> _ContrastFacts | _LabelFacts | ScoreFacts:
        if row.score is not None:
            return ScoreFacts()
        return _LabelFacts(self.labels) if row.label is not None else _ContrastFacts()

    def read_judgements(self, source: Source) -> None:
        """Take all records of a relevance file. Raises FileRefusedError where they end too early."""
        for number, record in source.records:
            try:
                relevance.judgement(record)
            except RowRefusedError as refusal:
                self.refuse(number, refusal)
            else:
                self.records += 1
                self.rows += 1

    def refuse(self, number: int | None, refusal: RefusedError) -> None:
        """Count a refusal, and list it unless many of its kind are. What is said of the file as a whole always is."""
        kind = (refusal.code, refusal.field)
        self.error_count += 1
        self.counts[kind] = count = self.counts.get(kind, 0) + 1
        room = count <= MAX_LISTED_ERRORS and len(self.errors) < MAX_LISTED_OF_ALL_KINDS
        if room or number is None:
            self.errors.append(_error(number, refusal))

    def report(self) -> FileReport:
        """The verdict after all records, or after those before the file was refused."""
        if not self.error_count and (refusal := self._as_a_whole()) is not None:
            self.refuse(None, refusal)
        return FileReport(self.format, self.rows, self.error_count, self.errors, self._summary(), self.counts)

    def _summary(self) -> str | None:
        if not self.errors:
            return {"relevance": relevance.NEEDS_TEXTS, "scored_pairs": FOR_EVALUATION}.get(self.format or "")
        about_all = next((error.message for error in self.errors if error.row is None), None)
        if about_all is not None:
            return about_all
        bad, every = self.error_count, self.error_count + self.records
        return f"{bad} of {every} rows can't be used; the first is {self.errors[0].message}"

    def _as_a_whole(self) -> RowRefusedError | None:
        if self.format == "relevance":
            return None if self.rows else RowRefusedError("empty_file", "The file holds no judgements. Add some.")
        if self.whole is None:
            return RowRefusedError("empty_file", f"The file holds no rows. {EXPECTED}")
        return self.whole.refusal()


def _error(number: int | None, refusal: RefusedError) -> RowError:
    message = refusal.message if number is None else f"Row {number}: {refusal.message}"
    return RowError(row=number, field=refusal.field, code=refusal.code, message=message)


class _ContrastFacts:
    """Whether some two rows have no content in common, or one has a negative of its own, without keeping the rows.

    Two rows that share a content cannot stand in one batch: each would be a negative of its own positive. Sets of
    at most two elements of which every two meet either all hold one common element or are drawn from three
    elements (a triangle), so the elements common to all and a few different rows decide it for pairs. Rows of more
    views are refused only where it is certain that every two meet.
    """

    _KEPT = 16

    def __init__(self) -> None:
        self.settled = False
        self._common: frozenset[Input] | None = None
        self._different: set[frozenset[Input]] = set()
        self._format: DataFormat = "pairs"

    def add(self, row: Row) -> None:
        """Take another row into account."""
        self._format = row.format
        contents = frozenset(row.inputs[:2]) if row.format == "triplets" else frozenset(row.inputs)
        self._common = contents if self._common is None else self._common & contents
        if len(self._different) < self._KEPT:
            self._different.add(contents)
        self.settled = (
            (row.format == "triplets" and not contents.issuperset(row.inputs))
            or any(contents.isdisjoint(other) for other in self._different)
            or (not self._common and len(self._different) == self._KEPT)
        )

    def refusal(self) -> RowRefusedError | None:
        """Why nothing can be learnt from the rows, or None."""
        if self.settled:
            return None
        content = "vector" if self._format == "vector_pairs" else "text"
        if len(self._different) == 1:
            found = f"All rows are the same {_ROW_NOUNS.get(self._format, 'pair')}"
        else:
            found = f"Any two rows share a {content}, so none is a negative of another"
        message = f"{found}. Add rows that have no {content} in common with these."
        return RowRefusedError("too_few_pairs", message)


class _LabelFacts:
    """Whether some label occurs twice and whether there are two labels."""

    #: Hashes instead of labels: a label may be as long as a row. Two that collide (Python's hash is keyed by process)
    #: would at worst let a file without positives pass.
    _BITS = 2**63 - 1

    def __init__(self, labels: Recurrence) -> None:
        self.settled = False
        self._labels = labels

    def add(self, row: Row) -> None:
        """Take another row into account. Raises OSError."""
        self._labels.add(hash(row.label) & self._BITS)
        self.settled = self._labels.found and self._labels.several

    def refusal(self) -> RowRefusedError | None:
        """Why nothing can be learnt from the rows, or None."""
        if not self._labels.several:
            message = "All rows have one label, so no row has a negative. Add rows of another label."
            return RowRefusedError("single_label", message, "label")
        if not self._labels.search():
            message = "Every label occurs once, so no row has a positive. Give rows that are alike one label."
            return RowRefusedError("no_positives", message, "label")
        return None
