"""Training rows: JSON Lines from a file, judged row by row, then held as texts and indices.

A row is a pair, `{"anchor": …, "positive": …}`, or a labelled text, `{"text": …, "label": …}`; all rows of a
file are of one kind. Fields besides these are ignored. Neither torch nor numpy is imported here, since the
worker that only validates uploads does not need them.

Errors
├── RowRefusedError   one row cannot be used; a validation collects these
└── DatasetError      a file that was to be trained on holds a row that cannot be used
"""

from __future__ import annotations

import difflib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from api_schemas.files import MAX_LISTED_ERRORS, MAX_ROW_BYTES, DataFormat, RowError

FIELDS: Mapping[DataFormat, tuple[str, str]] = {"pairs": ("anchor", "positive"), "labels": ("text", "label")}

_EXPECTED = (
    'Expected are rows such as {"anchor": "a question", "positive": "its answer"} or '
    '{"text": "a message", "label": "its class"}.'
)
_ROWS_BETWEEN_REPORTS = 1000
_SKIPPED_AT_ONCE = 64 * 1024
#: Only names like a person's are compared with ours: comparing takes the product of their lengths.
_LONGEST_COMPARED_NAME = 32


class RowRefusedError(Exception):
    """A row cannot be used. `message` says why and what to do, without the row's number."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field


class DatasetError(Exception):
    """A file that was to be trained on holds a row that cannot be used; the message names it."""


class Row(NamedTuple):
    """A good row: anchor and positive, or text and label (integers as their digits)."""

    format: DataFormat
    first: str
    second: str


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


@dataclass(frozen=True, eq=False)
class PairDataset:
    """Rows of anchor and positive. Row k is texts[anchors[k]] and texts[positives[k]]."""

    texts: list[str]  # each text once
    anchors: array[int]  # 32-bit indices into texts
    positives: array[int]

    def __len__(self) -> int:
        return len(self.anchors)


@dataclass(frozen=True, eq=False)
class LabelDataset:
    """Labelled texts. Row k is texts[items[k]] with the label label_names[labels[k]]; no row occurs twice."""

    texts: list[str]  # each text once
    items: array[int]  # 32-bit indices into texts
    labels: array[int]  # 32-bit indices into label_names
    label_names: list[str]

    def __len__(self) -> int:
        return len(self.items)


Dataset = PairDataset | LabelDataset


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
            return RowRefusedError("empty_file", f"The file holds no rows. {_EXPECTED}")
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


# Loading


def load(path: Path) -> Dataset:
    """Read a validated file into memory, each text once.

    Labels 1 and "1" are one label. Repeated rows of a label file count once; repeated pairs are kept.

    Raises DatasetError for a row that validation would refuse, or a file without rows; OSError.
    """
    rows = _good_rows(path)
    first = next(rows, None)
    if first is None:
        raise DatasetError("The file holds no rows.")
    collect = _collect_pairs if first.format == "pairs" else _collect_labels
    return collect(_prepend(first, rows))


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


def _prepend(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest


class _Table:
    """Numbers strings in the order in which they first occur."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def entries(self) -> list[str]:
        return list(self._numbers)


def _collect_pairs(rows: Iterator[Row]) -> PairDataset:
    texts, anchors, positives = _Table(), array("i"), array("i")
    for row in rows:
        anchors.append(texts.number(row.first))
        positives.append(texts.number(row.second))
    return PairDataset(texts.entries(), anchors, positives)


def _collect_labels(rows: Iterator[Row]) -> LabelDataset:
    texts, names, items, labels = _Table(), _Table(), array("i"), array("i")
    known: set[tuple[int, int]] = set()
    for row in rows:
        item = (texts.number(row.first), names.number(row.second))
        if item not in known:
            known.add(item)
            items.append(item[0])
            labels.append(item[1])
    return LabelDataset(texts.entries(), items, labels, names.entries())


# Lines


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """The lines that are not blank, with their number from 1 and without line end or byte order mark.

    A line longer than MAX_ROW_BYTES is None, and is never in memory as a whole.
    """
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 2):  # 2: a line end of the longest kind
        number += 1
        ended = line.endswith(b"\n")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(line) > MAX_ROW_BYTES:
            if not ended:
                _skip_to_line_end(file)
            yield number, None
        elif line and not line.isspace():
            yield number, line


def _skip_to_line_end(file: BinaryIO) -> None:
    while (piece := file.readline(_SKIPPED_AT_ONCE)) and not piece.endswith(b"\n"):
        pass


# Rows


def parse_row(line: bytes | None, expected: DataFormat | None) -> Row:
    """Make a row of a line, None standing for a line that was too long to read.

    `expected` is the format of the rows before, None at the first row. Raises RowRefusedError.
    """
    if line is None:
        message = f"longer than {MAX_ROW_BYTES} bytes. Shorten its texts or split it into several rows."
        raise RowRefusedError("row_too_long", message)
    members = _parse_object(line)
    row_format = _format_of(members, expected)
    first, second = FIELDS[row_format]
    text = _text(members, first)
    if row_format == "labels" and type(members[second]) is int:
        return Row(row_format, text, str(members[second]))
    return Row(row_format, text, _text(members, second))


def _parse_object(line: bytes) -> dict[str, Any]:
    try:
        value = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        message = f"not UTF-8 (at byte {error.start + 1} of the row). Save the file as UTF-8."
        raise RowRefusedError("invalid_utf8", message) from None
    except json.JSONDecodeError as error:
        message = f"not valid JSON ({error.msg} at column {error.colno}). Each line must be one whole JSON object."
        raise RowRefusedError("row_invalid_json", message) from None
    except RecursionError:
        raise RowRefusedError("json_too_deep", "nested too deeply. Remove the nested field.") from None
    except ValueError:  # Python refuses integers of more than 4300 digits with nothing more specific
        raise RowRefusedError("row_invalid_json", "a number has too many digits. Shorten it.") from None
    if not isinstance(value, dict):
        message = f"{_kind(value)} instead of an object. Each line must be one whole JSON object."
        raise RowRefusedError("row_invalid_json", message)
    return value


def _unique_members(members: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(members)
    if len(unique) < len(members):
        (repeated, _), *_ = Counter(name for name, _ in members).most_common(1)
        raise RowRefusedError("duplicate_key", f"names {_shown(repeated)} twice. Keep one of them.")
    return unique


def _refuse_constant(constant: str) -> NoReturn:
    message = f"holds {constant}, which JSON does not have. Replace it by null or remove the field."
    raise RowRefusedError("not_finite", message)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_members, parse_constant=_refuse_constant)


def _format_of(members: dict[str, Any], expected: DataFormat | None) -> DataFormat:
    complete = [name for name, fields in FIELDS.items() if all(field in members for field in fields)]
    if expected in complete or (expected is None and complete):
        return expected or complete[0]
    if complete:
        has, wanted = FIELDS[complete[0]], FIELDS[expected or "pairs"]
        message = (
            f"has {_quoted(has)}, but the rows before have {_quoted(wanted)}. "
            "Put pairs and labelled texts into files of their own."
        )
        raise RowRefusedError("row_mixed_format", message)
    raise _incomplete(members, expected)


def _incomplete(members: dict[str, Any], expected: DataFormat | None) -> RowRefusedError:
    """What to say of a row that has the fields of neither format."""
    if "messages" in members:
        message = f"a chat row, which teaches a model to answer; this service trains encoders. {_EXPECTED}"
        return RowRefusedError("row_missing_field", message)
    meant = expected or _nearest_format(members)
    if meant is None:
        return RowRefusedError("row_missing_field", f"has {_quoted(list(members)[:6])}. {_EXPECTED}")
    missing = next(name for name in FIELDS[meant] if name not in members)
    typo = _misspelt(missing, members)
    remedy = f"Rename {_shown(typo)}." if typo is not None else "Add it."
    return RowRefusedError("row_missing_field", f"has no '{missing}'. {remedy}", missing)


def _nearest_format(members: dict[str, Any]) -> DataFormat | None:
    for name, fields in FIELDS.items():
        if any(field in members or _misspelt(field, members) is not None for field in fields):
            return name
    return None


def _misspelt(wanted: str, members: dict[str, Any]) -> str | None:
    """The field that was probably meant to be `wanted`."""
    known = {field for fields in FIELDS.values() for field in fields}
    candidates = {
        name.strip().lower(): name
        for name in list(members)[:32]
        if len(name) <= _LONGEST_COMPARED_NAME and name not in known
    }
    near = difflib.get_close_matches(wanted, candidates, n=1, cutoff=0.75)
    return candidates[near[0]] if near else None


def _text(members: dict[str, Any], name: str) -> str:
    value = members[name]
    if not isinstance(value, str):
        allowed = "a string or an integer" if name == "label" else "a string"
        remedy = "Write one row for each." if isinstance(value, list) else "Change it."
        message = f"'{name}' must be {allowed}, not {_kind(value)}. {remedy}"
        raise RowRefusedError("row_invalid_type", message, name)
    if not value or value.isspace():
        raise RowRefusedError("row_empty_text", f"'{name}' is empty. Fill it or remove the row.", name)
    if not _is_sound(value):
        message = f"'{name}' holds NUL or half of a surrogate pair (such as \\u0000 or \\ud800). Remove it."
        raise RowRefusedError("invalid_unicode", message, name)
    return value


def _is_sound(text: str) -> bool:
    """Whether text can be stored and tokenized: no NUL, no lone surrogates."""
    if "\0" in text:
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    kinds = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), "null")


def _quoted(names: tuple[str, ...] | list[str]) -> str:
    return " and ".join(map(_shown, names)) or "no fields"


def _shown(name: str) -> str:
    """A name from a file, short and printable."""
    return repr(name if len(name) <= _LONGEST_COMPARED_NAME else name[:_LONGEST_COMPARED_NAME] + "…")
