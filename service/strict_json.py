"""The one reader of JSON from outside: what it returns is plain, finite, shallow and valid text.

Everything Python's own parser lets through although JSON or our storage would not (NaN, 1e999, duplicate
keys, lone surrogates, NUL, UTF-16, endless nesting) is refused here once, so that nobody inside asks again.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from api_schemas.errors import LikenessError

MAX_DEPTH = 32
#: Integers beyond 64 bits fit neither PostgreSQL nor most clients.
MAX_INTEGER = 2**63 - 1
MIN_INTEGER = -(2**63)

_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")
#: Decoded UTF-8 holds no surrogate, and JSON no bare NUL: only these escapes can bring one in. Where there
#: is none (nearly always), no string needs a look.
_MAY_HIDE_NOT_TEXT = re.compile(rb"\\u(?:[dD][89a-fA-F]|0000)")
_LONGEST_NAME = 80


def parse_json(body: bytes) -> Any:
    """The value that `body` holds.

    Raises LikenessError: invalid_unicode, invalid_json, json_too_deep, duplicate_key, not_finite or
    out_of_range; `param` is the path to the value, such as `input.3`, where there is one.
    """
    value = _decode_json(_decode_text(body))
    _check_values(value, look_at_text=_MAY_HIDE_NOT_TEXT.search(body) is not None)
    return value


def shown_path(keys: tuple[str | int | None, ...]) -> str | None:
    """A path fit for `param`: keys are a stranger's text, so what can't be shown is replaced, and long
    names are cut."""
    return ".".join(shown_name(str(key)) for key in keys if key is not None) or None


def shown_name(name: str) -> str:
    """A stranger's name, fit for a message."""
    printable = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    return printable if len(printable) <= _LONGEST_NAME else printable[:_LONGEST_NAME] + "…"


def _decode_text(body: bytes) -> str:
    if body.startswith(_BYTE_ORDER_MARKS) or b"\x00" in body:
        raise LikenessError(
            "invalid_unicode",
            "The body starts with a byte order mark or holds NUL bytes; send plain UTF-8 without either.",
        )
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LikenessError(
            "invalid_unicode", f"The body is not UTF-8: byte {error.start} can't be decoded. Send UTF-8."
        ) from None


def _decode_json(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _not_json(error) from None
    except RecursionError:
        raise _too_deep(None) from None
    except ValueError:  # int() refuses thousands of digits before it spends time on them
        raise LikenessError("out_of_range", "A number has thousands of digits; integers must fit in 64 bits.") from None


def _not_json(error: json.JSONDecodeError) -> LikenessError:
    if not error.doc.strip():
        return LikenessError("invalid_json", "The body is empty; send one JSON value.")
    where = f"line {error.lineno}, column {error.colno}"
    return LikenessError(
        "invalid_json", f"The body is not JSON: {error.msg} ({where}). Correct it there and send it again."
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        _refuse_duplicate(pairs)
    return members


def _refuse_duplicate(pairs: list[tuple[str, Any]]) -> NoReturn:
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    name = shown_name(twice)
    raise LikenessError("duplicate_key", f"An object holds the key `{name}` twice; keep one.", param=name)


_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates)


def _check_values(root: Any, *, look_at_text: bool) -> None:
    """One walk over the tree, without recursion: the stack holds an iterator for each level we are in.

    The types are exact, since the decoder makes no subclasses; a bool is no `int` here.
    """
    levels: list[Iterator[tuple[Any, Any]]] = [iter([(None, root)])]
    keys: list[Any] = []
    while levels:
        for key, value in levels[-1]:
            kind = type(value)
            if look_at_text:
                _check_text(keys, key, value)
            if kind is str:
                continue
            if kind is dict or kind is list:
                if len(levels) > MAX_DEPTH:
                    raise _too_deep(shown_path((*keys, key)))
                levels.append(iter(value.items()) if kind is dict else enumerate(value))
                keys.append(key)
                break
            if kind is int:
                if not MIN_INTEGER <= value <= MAX_INTEGER:
                    raise _too_large((*keys, key))
            elif kind is float and not math.isfinite(value):
                raise _not_finite((*keys, key))
        else:
            levels.pop()
            if keys:
                keys.pop()


def _check_text(keys: list[Any], key: Any, value: Any) -> None:
    for text in (key, value):
        if type(text) is str and _NOT_TEXT.search(text):
            raise LikenessError(
                "invalid_unicode",
                "A text holds NUL or half of a surrogate pair, so it is not Unicode; remove it.",
                param=shown_path((*keys, key)),
            )


def _too_deep(path: str | None) -> LikenessError:
    return LikenessError("json_too_deep", f"JSON may be nested {MAX_DEPTH} levels deep, no more.", param=path)


def _too_large(keys: tuple[Any, ...]) -> LikenessError:
    return LikenessError(
        "out_of_range",
        f"Integers must lie between {MIN_INTEGER} and {MAX_INTEGER}; write a larger number as 1e20.",
        param=shown_path(keys),
    )


def _not_finite(keys: tuple[Any, ...]) -> LikenessError:
    return LikenessError(
        "not_finite",
        "Numbers must be finite: NaN and Infinity are not JSON, and this one is beyond a 64-bit float.",
        param=shown_path(keys),
    )
