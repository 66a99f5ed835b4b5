"""Aliases: names that a team gives to models, and may give to others later. The rows behind /v1/aliases."""

from collections.abc import Sequence

from sqlalchemy import case, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api_schemas.errors import LikenessError
from storage import models
from storage.tables import Alias


def put(session: Session, name: str, model: str) -> Alias:
    """Have the team's alias `name` stand for a model from the commit on, whatever it stood for before.

    `model` is the name of a base model, or of a tuned one, whose deletion then finds the alias. Raises LikenessError
    `model_not_found` for a tuned model that is deleted.
    """
    models.hold(session, model)
    new = insert(Alias).values(team_id=session.info["team"], name=name, model=model)
    is_same = Alias.model == new.excluded.model
    moved = new.on_conflict_do_update(
        index_elements=[Alias.team_id, Alias.name],
        set_={
            "model": new.excluded.model,
            "updated_at": case((is_same, Alias.updated_at), else_=func.clock_timestamp()),
        },
    )
    return session.scalars(moved.returning(Alias), execution_options={"populate_existing": True}).one()


def find(session: Session, name: str) -> Alias | None:
    """The team's alias of this name."""
    return session.scalar(select(Alias).where(Alias.name == name))


def get(session: Session, name: str) -> Alias:
    """The team's alias of this name. Raises LikenessError `not_found`."""
    row = find(session, name)
    if row is None:
        raise _not_found(name)
    return row


def list_aliases(session: Session, *, after: str | None, limit: int) -> tuple[Sequence[Alias], bool]:
    """At most `limit` of the team's aliases whose names come after `after`, by name, and whether more follow."""
    listed = select(Alias).order_by(Alias.name).limit(limit + 1)
    rows = session.scalars(listed if after is None else listed.where(Alias.name > after)).all()
    return rows[:limit], len(rows) > limit


def remove(session: Session, name: str) -> None:
    """Delete an alias; the model that it stands for stays. Raises LikenessError `not_found`."""
    if session.scalar(delete(Alias).where(Alias.name == name).returning(Alias.name)) is None:
        raise _not_found(name)


def _not_found(name: str) -> LikenessError:
    return LikenessError("not_found", f"There is no alias {name!r}; GET /v1/aliases lists those there are.")
