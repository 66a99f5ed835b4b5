"""Where in a body an error is: pydantic's `loc` read along the types the body was checked against."""

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, RootModel

_ARRAYS = (list, tuple, set, frozenset, Sequence)


class Place(NamedTuple):
    """Where in the body an error is: the path a person would write, and the model that owns its last key."""

    path: tuple[str | int, ...]
    owner: type[BaseModel] | None
    unions: tuple[int, ...]
    """Positions in pydantic's `loc` that name a branch of a union, and so no key of the body."""


def locate(annotation: Any, loc: Sequence[str | int]) -> Place:
    """Follow pydantic's `loc` through the types, leaving out what names a union's branch."""
    path: list[str | int] = []
    unions: list[int] = []
    owner: type[BaseModel] | None = None
    for position, key in enumerate(loc):
        annotation = _plain(annotation)
        branches = _branches(annotation)
        if branches:
            unions.append(position)
            annotation = _branch_named(branches, key, loc[position + 1 :])
        elif key != "[key]":  # how pydantic says: the key itself, not its value
            owner = annotation if _is_model(annotation) else None
            annotation = _inside(annotation, key)
            path.append(key)
    return Place(tuple(path), owner, tuple(unions))


def field_types(model: type[BaseModel] | None) -> dict[str, Any]:
    """Names as clients write them → types."""
    fields = {} if model is None else model.model_fields
    return {field.alias or name: field.annotation for name, field in fields.items()}


def _plain(annotation: Any) -> Any:
    """The type without what pydantic leaves out of `loc`: Annotated, `| None`, aliases, root models."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__value__"):  # a `type X = …` statement
            annotation = annotation.__value__
        elif _is_model(annotation) and issubclass(annotation, RootModel):
            annotation = annotation.model_fields["root"].annotation
        elif _is_union(annotation) and len(_not_none(annotation)) == 1:
            annotation = _not_none(annotation)[0]
        else:
            return annotation


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _not_none(union: Any) -> list[Any]:
    return [member for member in get_args(union) if member is not type(None)]


def _branches(annotation: Any) -> list[Any]:
    return _not_none(annotation) if _is_union(annotation) else []


def _branch_named(branches: list[Any], label: str | int, rest: Sequence[str | int]) -> Any:
    """The branch pydantic means by `label` (a model's name or tag); else the first that could hold `rest`."""
    plain = [_plain(branch) for branch in branches]
    for branch in plain:
        if _is_model(branch) and (branch.__name__ == label or label in _tags(branch)):
            return branch
    for branch in plain:
        if rest and _could_hold(branch, rest[0]) and str(label).startswith(_outer_name(branch)):
            return branch
    return Any


def _tags(model: type[BaseModel]) -> set[Any]:
    annotations = (field.annotation for field in model.model_fields.values())
    return {tag for hint in annotations if get_origin(hint) is Literal for tag in get_args(hint)}


def _could_hold(annotation: Any, key: str | int) -> bool:
    return bool(_branches(annotation)) or isinstance(key, int) == (get_origin(annotation) in _ARRAYS)


def _outer_name(annotation: Any) -> str:
    return getattr(get_origin(annotation), "__name__", "")


def _inside(annotation: Any, key: str | int) -> Any:
    """The type of what `key` leads to."""
    if _is_model(annotation):
        return field_types(annotation).get(str(key), Any)
    arguments = get_args(annotation)
    if not arguments:
        return Any
    if get_origin(annotation) is tuple and isinstance(key, int) and Ellipsis not in arguments:
        return arguments[key] if key < len(arguments) else Any
    return arguments[0] if get_origin(annotation) is tuple else arguments[-1]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
