"""JSON Lines: one object a line, read by the standard library.

pyarrow reads JSON too, but names no line that it refuses and unifies types over rows. Memory is bounded by the
longest row that is allowed, whatever a file holds.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO, NoReturn

from api_schemas.files import MAX_LISTED_ERRORS, MAX_ROW_BYTES
from workers.data.formats import shown
from workers.data.row import RowRefusedError

#: A record's number, as its reader finds it in the file, with its fields or with why it has none.
Record = tuple[int, "dict[str, Any] | RowRefusedError"]

_SKIPPED_AT_ONCE = 64 * 1024
_END_OF_KEY = re.compile(r'"[ \t\r\n]*:')
#: What an object may end with.
_ENDS = (b"}", b" ", b"\t", b"\r")
#: Lists and objects within one another, at most. Python's own bound depends on how deep its caller is: what is read in
#: validation might not be read in training.
_DEEPEST = 128
#: Short enough for no nesting that is too deep and no number of too many digits.
_SHORT = 128
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


def records(file: BinaryIO) -> Iterator[Record]:
    """The records of all lines that are not blank, numbered by their line from 1."""
    broken = 0
    one_of_many = RowRefusedError("row_invalid_json", "is not valid JSON. Each line must be one whole JSON object.")
    for number, line in numbered_lines(file):
        record: dict[str, Any] | RowRefusedError
        if broken >= MAX_LISTED_ERRORS and line is not None and _is_surely_broken(line):
            # Of so many, what exactly is wrong with another is not told: a file of one character a line is soon read.
            yield number, one_of_many
            continue
        try:
            record = parse(line)
        except RowRefusedError as refusal:
            record = refusal
            broken += refusal.code == one_of_many.code
        yield number, record


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """The lines that are not blank, with their number from 1 and without line end or byte order mark.

    A line longer than MAX_ROW_BYTES is None, and is never in memory as a whole.
    """
    # 2: a line end of the longest kind
    for number, read in enumerate(iter(partial(file.readline, MAX_ROW_BYTES + 2), b""), start=1):
        line = read.removeprefix(b"\xef\xbb\xbf") if number == 1 else read
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(line) > MAX_ROW_BYTES:
            if not read.endswith(b"\n"):
                skip_to_line_end(file)
            yield number, None
        elif line and not line.isspace():
            yield number, line


def skip_to_line_end(file: BinaryIO) -> None:
    """Read on to the end of a line without keeping it."""
    while (piece := file.readline(_SKIPPED_AT_ONCE)) and not piece.endswith(b"\n"):
        pass


def parse(line: bytes | None) -> dict[str, Any]:
    """The object of a line, None standing for a line that was too long to read. Raises RowRefusedError."""
    if line is None:
        raise too_long()
    try:
        text = line.decode("utf-8")
        if is_too_deep(text):
            raise RowRefusedError("json_too_deep", "is nested too deeply. Remove the nested field.")
        value = _FAST_DECODER.decode(text)
        if type(value) is dict and not _names_are_unique(text, value):
            value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 (at byte {error.start + 1} of the row). Save the file as UTF-8."
        raise RowRefusedError("invalid_utf8", message) from None
    except json.JSONDecodeError as error:
        found = error.msg.removesuffix(" at")
        message = f"is not valid JSON ({found} at column {error.colno}). Each line must be one whole JSON object."
        raise RowRefusedError("row_invalid_json", message) from None
    except ValueError:  # Python refuses integers of more than 4300 digits with nothing more specific
        raise RowRefusedError("row_invalid_json", "holds a number with too many digits. Shorten it.") from None
    if not isinstance(value, dict):
        message = f"is {kind(value)} instead of an object. Each line must be one whole JSON object."
        raise RowRefusedError("row_invalid_json", message)
    return value


def is_too_deep(text: str) -> bool:
    """Whether lists and objects stand within one another more than 128 deep; in any text, JSON or not."""
    if text.count("[") + text.count("{") <= _DEEPEST:
        return False
    depth = 0
    for mark in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if mark in "[{" else -1
        if depth > _DEEPEST:
            return True
    return False


def too_long() -> RowRefusedError:
    """What to say of a row that is longer than allowed, in whatever file."""
    message = f"is longer than {MAX_ROW_BYTES} bytes. Shorten its texts or split it into several rows."
    return RowRefusedError("row_too_long", message)


def kind(value: object) -> str:
    """What a value is, for a sentence."""
    kinds = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
        bytes: "bytes",
        type(None): "null",
    }
    return kinds.get(type(value), "something else")


def _is_surely_broken(line: bytes) -> bool:
    """Whether `parse` would refuse a line as row_invalid_json, as far as its end tells. NaN and Infinity are others."""
    if len(line) > _SHORT or line.endswith(_ENDS):
        return False
    return b"N" not in line and b"I" not in line and line.isascii()


def _names_are_unique(text: str, members: dict[str, Any]) -> bool:
    """Whether an object surely names no key twice; False where only a closer look can tell.

    Every key that is written ends in a quote and a colon. Where there are as many such places as there are keys
    in the end, none was written twice.
    """
    return text.count(":") == len(members) or len(_END_OF_KEY.findall(text)) == len(members)


def _unique_members(members: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(members)
    if len(unique) < len(members):
        (repeated, _), *_ = Counter(name for name, _ in members).most_common(1)
        raise RowRefusedError("duplicate_key", f"names {shown(repeated)} twice. Keep one of them.")
    return unique


def _refuse_constant(constant: str) -> NoReturn:
    message = f"holds {constant}, which JSON does not have. Replace it by null or remove the field."
    raise RowRefusedError("not_finite", message)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_members, parse_constant=_refuse_constant)
# The hook costs more than all the rest of reading a row, so that it is called for few.
_FAST_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
