"""/v1/aliases: the team's own names for models."""

import re

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api_schemas.aliases import ALIAS_PATTERN, Alias, AliasPut
from api_schemas.errors import LikenessError
from api_schemas.pages import Deleted, Page
from service.keys import CallerDep
from service.model_names import base_models, find_model_itself, model_not_found
from service.routes.paging import After, Limit, page_of
from service.state import ServiceState, StateDep
from service.strict_route import StrictRoute
from storage import aliases, tables

router = APIRouter(prefix="/v1/aliases", tags=["models"], route_class=StrictRoute)


@router.put("/{name}")
def put_alias(name: str, request: AliasPut, caller: CallerDep, state: StateDep) -> Alias:
    """Have a name stand for a model, whatever it stood for before. Sent again, it changes nothing.

    Requests that name it get the new model within moments, in all processes.
    """
    _check_name(name, state)
    with state.database.session(caller.team_id) as session:
        _check_model(session, state, request.model)
        answer = _wire(aliases.put(session, name, request.model))
    state.catalogue.forget()
    return answer


@router.get("")
def list_aliases(caller: CallerDep, state: StateDep, after: After = None, limit: Limit = 20) -> Page[Alias]:
    """The team's aliases by name; `after` is the name of the last already seen."""
    with state.database.session(caller.team_id) as session:
        rows, has_more = aliases.list_aliases(session, after=after, limit=limit)
        return page_of([_wire(row) for row in rows], [row.name for row in rows], has_more=has_more)


@router.get("/{name}")
def get_alias(name: str, caller: CallerDep, state: StateDep) -> Alias:
    """One alias, and the model that it stands for."""
    with state.database.session(caller.team_id) as session:
        return _wire(aliases.get(session, name))


@router.delete("/{name}")
def delete_alias(name: str, caller: CallerDep, state: StateDep) -> Deleted:
    """Delete an alias; the model that it stands for stays."""
    with state.database.session(caller.team_id) as session:
        aliases.remove(session, name)
    state.catalogue.forget()
    return Deleted(id=name, object="alias")


def _check_name(name: str, state: ServiceState) -> None:
    """Refuse a name that isn't one for an alias, or that a base model has."""
    if not re.fullmatch(ALIAS_PATTERN, name):
        message = (
            "An alias has up to 64 letters of a to z, digits, '.', '_' and '-', and begins with a letter or a digit; "
            "names of tuned models, which begin with 'ft:', are theirs."
        )
        raise LikenessError("invalid_value", message, param="name")
    if name in base_models(state.settings.base_models_dir):
        raise LikenessError("invalid_value", f"{name!r} is a base model's name; choose another.", param="name")


def _check_model(session: Session, state: ServiceState, model: str) -> None:
    """Refuse what is no model of the team's."""
    if find_model_itself(session, state.settings, model) is not None:
        return
    if (alias := aliases.find(session, model)) is not None:
        message = f"{model!r} is an alias itself; name the model that it stands for: {alias.model!r}."
        raise LikenessError("invalid_value", message, param="model")
    raise model_not_found(model)


def _wire(row: tables.Alias) -> Alias:
    return Alias(
        name=row.name,
        model=row.model,
        created_at=int(row.created_at.timestamp()),
        updated_at=int(row.updated_at.timestamp()),
    )
