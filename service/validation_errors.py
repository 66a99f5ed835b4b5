"""pydantic's list of errors → one LikenessError that says what to change.

pydantic reports every branch of a union, with the branch's name inside the path. Here the branch that came
nearest is chosen, or, where none fits, all are told in one sentence: "`n_epochs` must be an integer or
'auto', not a string."
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from api_schemas.errors import ERROR_CODES, LikenessError
from service.body_places import Place, field_types, locate
from service.strict_json import shown_path

#: What pydantic says, as it hands it out: {"type", "loc", "msg", "input", "ctx"}.
PydanticError = Mapping[str, Any]

#: Fields of our answers that people send back although only the service sets them.
READ_ONLY_FIELDS = frozenset(
    {
        "id",
        "object",
        "team_id",
        "organization_id",
        "status",
        "created_at",
        "updated_at",
        "started_at",
        "finished_at",
        "estimated_finish",
        "expires_at",
        "gpu_seconds",
        "trained_tokens",
        "fine_tuned_model",
        "result_files",
        "error",
        "interruptions",
        "attempt",
        "bytes",
        "sha256",
    }
)

#: A hostile body can hold a million wrong values; this many are looked at.
_MOST_ERRORS = 64

#: type of error → code, what the value must be (with pydantic's ctx filled in).
_REQUIREMENTS: dict[str, tuple[str, str]] = {
    "greater_than": ("out_of_range", "greater than {gt}"),
    "greater_than_equal": ("out_of_range", "at least {ge}"),
    "less_than": ("out_of_range", "less than {lt}"),
    "less_than_equal": ("out_of_range", "at most {le}"),
    "multiple_of": ("out_of_range", "a multiple of {multiple_of}"),
    "string_too_short": ("out_of_range", "at least {min_length} characters long"),
    "string_too_long": ("out_of_range", "at most {max_length} characters long"),
    "too_short": ("out_of_range", "at least {min_length} items long"),
    "too_long": ("out_of_range", "at most {max_length} items long"),
    "finite_number": ("not_finite", "a finite number"),
    "literal_error": ("invalid_value", "{expected}"),
    "enum": ("invalid_value", "{expected}"),
    "string_pattern_mismatch": ("invalid_value", "text that matches {pattern}"),
    "string_type": ("invalid_type", "a string"),
    "int_type": ("invalid_type", "an integer"),
    "int_parsing": ("invalid_type", "an integer"),
    "int_from_float": ("invalid_type", "an integer"),
    "int_parsing_size": ("out_of_range", "an integer of at most 64 bits"),
    "float_type": ("invalid_type", "a number"),
    "float_parsing": ("invalid_type", "a number"),
    "bool_type": ("invalid_type", "true or false"),
    "bool_parsing": ("invalid_type", "true or false"),
    "list_type": ("invalid_type", "an array"),
    "tuple_type": ("invalid_type", "an array"),
    "set_type": ("invalid_type", "an array"),
    "dict_type": ("invalid_type", "an object"),
    "model_type": ("invalid_type", "an object"),
    "model_attributes_type": ("invalid_type", "an object"),
    "none_required": ("invalid_type", "null"),
}

# Behind a validator of ours pydantic no longer knows that it measures text.
_LENGTHS_OF_TEXT = {"too_short": "string_too_short", "too_long": "string_too_long"}

_JSON_KINDS: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    str: "a string",
    list: "an array",
    dict: "an object",
}
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def explain(errors: Sequence[PydanticError], annotation: Any) -> LikenessError:
    """The error to answer with. `annotation` is the type the body was checked against, Any if unknown;
    the errors' `loc` starts inside it."""
    # A misspelt field also shows as a missing one, and the spelling is what to correct.
    unknown_first = sorted(errors[:_MOST_ERRORS], key=lambda error: error["type"] != "extra_forbidden")
    families = _families(unknown_first, annotation)
    nearest = _nearest(families[0], annotation, 0)
    refusal = _refusal(nearest, locate(annotation, nearest[0]["loc"]))
    return _with_count(refusal, len(families) - 1, "at least " if len(errors) > _MOST_ERRORS else "")


def _families(errors: Sequence[PydanticError], annotation: Any) -> list[list[PydanticError]]:
    """Errors that are one mistake (all branches of one union) put together."""
    families: list[list[PydanticError]] = []
    remaining = list(errors)
    while remaining:
        family = _siblings(remaining, annotation)
        families.append(family)
        members = {id(error) for error in family}
        remaining = [error for error in remaining if id(error) not in members]
    return families


def _siblings(errors: Sequence[PydanticError], annotation: Any) -> list[PydanticError]:
    loc = errors[0]["loc"]
    for at in locate(annotation, loc).unions:
        siblings = _under(errors, loc[:at])
        if len({error["loc"][at] for error in siblings}) > 1:
            return siblings
    return [errors[0]]


def _under(errors: Iterable[PydanticError], prefix: tuple[str | int, ...]) -> list[PydanticError]:
    depth = len(prefix)
    return [error for error in errors if len(error["loc"]) > depth and error["loc"][:depth] == prefix]


def _nearest(family: list[PydanticError], annotation: Any, depth: int) -> list[PydanticError]:
    """The errors to tell: those of the branch with the least wrong, or one for each branch if all are wrong
    from the start."""
    loc = family[0]["loc"]
    at = next((at for at in locate(annotation, loc).unions if at >= depth), None)
    if at is None:
        return family[:1]
    siblings = _under(family, loc[:at])
    if all(len(error["loc"]) == at + 1 for error in siblings):
        return siblings
    branches: dict[Any, list[PydanticError]] = {}
    for error in siblings:
        branches.setdefault(error["loc"][at], []).append(error)
    return _nearest(min(branches.values(), key=lambda branch: _distance(branch, at)), annotation, at + 1)


def _distance(branch: list[PydanticError], at: int) -> tuple[bool, int]:
    return any(len(error["loc"]) == at + 1 for error in branch), len(branch)


def _refusal(errors: Sequence[PydanticError], place: Place) -> LikenessError:
    error = errors[0]
    kind = error["type"]
    param = shown_path(place.path)
    if kind in ERROR_CODES:  # raised by a validator of ours, as PydanticCustomError
        return LikenessError(kind, error["msg"], param=param)
    if kind == "missing":
        return _missing(param)
    if kind == "extra_forbidden":
        return _unknown(place)
    if kind.startswith("union_tag"):
        return _wrong_tag(error, place)
    if all(error["type"] in _REQUIREMENTS for error in errors):
        return _unmet(errors, param)
    return LikenessError("invalid_value", f"{_subject(param)} is refused: {_plain_message(error)}", param=param)


def _missing(param: str | None) -> LikenessError:
    if param is None:
        return LikenessError("missing_parameter", "This route needs a JSON body, and none was sent.")
    return LikenessError("missing_parameter", f"`{param}` is required.", param=param)


def _unknown(place: Place) -> LikenessError:
    param = shown_path(place.path)
    name = str(place.path[-1])
    if len(place.path) == 1 and name in READ_ONLY_FIELDS:
        message = f"`{param}` is set by the service alone; leave it out."
        return LikenessError("read_only_parameter", message, param=param)
    known = sorted(field_types(place.owner))
    near = difflib.get_close_matches(name[:100], known, n=1)
    return LikenessError("unknown_parameter", f"There is no field `{param}`{_hint(near, known)}", param=param)


def _hint(near: list[str], known: list[str]) -> str:
    if near:
        return f"; did you mean `{near[0]}`?"
    return f" here; the known ones are {', '.join(known)}." if known else " here; leave it out."


def _wrong_tag(error: PydanticError, place: Place) -> LikenessError:
    tag_name = error["ctx"].get("discriminator", "'type'").strip("'")
    param = shown_path((*place.path, tag_name))
    if error["type"] == "union_tag_not_found":
        return LikenessError("missing_parameter", f"`{param}` is required.", param=param)
    expected = _alternatives(error["ctx"]["expected_tags"].split(", "))
    return LikenessError("invalid_value", f"`{param}` must be {expected}.", param=param)


def _unmet(errors: Sequence[PydanticError], param: str | None) -> LikenessError:
    wanted = _alternatives(list(dict.fromkeys(_requirement(error) for error in errors)))
    code = _code(errors)
    kind = _json_kind(errors[0]["input"])
    found = f", not {kind}" if code == "invalid_type" and kind not in wanted else ""
    return LikenessError(code, f"{_subject(param)} must be {wanted}{found}.", param=param)


def _code(errors: Sequence[PydanticError]) -> str:
    """The code of the branch that came nearest: one that took the type, but not the value."""
    codes = [_REQUIREMENTS[error["type"]][0] for error in errors]
    text = errors[0]["input"]
    if isinstance(text, str) and "invalid_value" in codes:
        return "invalid_character" if _is_name_with_controls(errors, text) else "invalid_value"
    beyond = [code for code in codes if code not in ("invalid_type", "invalid_value")]
    return next(iter([*beyond, *(code for code in codes if code == "invalid_type"), *codes]))


def _is_name_with_controls(errors: Sequence[PydanticError], text: str) -> bool:
    by_pattern = any(error["type"] == "string_pattern_mismatch" for error in errors)
    return by_pattern and _CONTROL_CHARACTER.search(text) is not None


def _requirement(error: PydanticError) -> str:
    kind: str = error["type"]
    if isinstance(error["input"], str):
        kind = _LENGTHS_OF_TEXT.get(kind, kind)
    return _REQUIREMENTS[kind][1].format_map(error.get("ctx", {}))


def _subject(param: str | None) -> str:
    return "The body" if param is None else f"`{param}`"


def _plain_message(error: PydanticError) -> str:
    message = re.sub(r"^(Value error|Assertion failed), ", "", error["msg"])
    return message if message.endswith(".") else message + "."


def _json_kind(value: Any) -> str:
    return _JSON_KINDS.get(type(value), "this")


def _alternatives(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _with_count(refusal: LikenessError, others: int, at_least: str) -> LikenessError:
    if not others:
        return refusal
    problems = "problem" if others == 1 else "problems"
    message = f"{refusal.message} The request has {at_least}{others} more {problems}."
    return LikenessError(refusal.code, message, param=refusal.param)
