"""One row of a dataset: from the bytes of a line to two texts, or to the reason why not.

A row is a pair, `{"anchor": …, "positive": …}`, or a labelled text, `{"text": …, "label": …}`. Fields besides
these are ignored. Memory is bounded by the longest row that is allowed, whatever a file holds.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, NoReturn

from api_schemas.files import MAX_ROW_BYTES, DataFormat

FIELDS: Mapping[DataFormat, tuple[str, str]] = {"pairs": ("anchor", "positive"), "labels": ("text", "label")}

EXPECTED = (
    'Expected are rows such as {"anchor": "a question", "positive": "its answer"} or '
    '{"text": "a message", "label": "its class"}.'
)
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


class Row(NamedTuple):
    """A good row: anchor and positive, or text and label (integers as their digits)."""

    format: DataFormat
    first: str
    second: str


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
        message = f"a chat row, which teaches a model to answer; this service trains encoders. {EXPECTED}"
        return RowRefusedError("row_missing_field", message)
    meant = expected or _nearest_format(members)
    if meant is None:
        return RowRefusedError("row_missing_field", f"has {_quoted(list(members)[:6])}. {EXPECTED}")
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
