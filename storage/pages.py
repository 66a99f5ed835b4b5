"""Cursor pages over a table: newest first, or oldest first."""

from collections.abc import Sequence
from typing import Literal, TypeVar

from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.orm import Session

from api_schemas.errors import LikenessError
from storage.tables import File, Job, Model

Listed = TypeVar("Listed", File, Job, Model)
Order = Literal["asc", "desc"]


def page(
    session: Session,
    table: type[Listed],
    *criteria: ColumnElement[bool],
    after: str | None,
    limit: int,
    order: Order = "desc",
) -> tuple[Sequence[Listed], bool]:
    """At most `limit` rows behind the row with id `after`, and whether more follow.

    Raises LikenessError `invalid_cursor` when `after` names no row of this list.
    """
    place = tuple_(table.created_at, table.id)
    query = select(table).where(*criteria)
    if after is not None:
        last = session.scalar(select(table).where(table.id == after))
        if last is None:
            raise LikenessError("invalid_cursor", f"'after' names nothing in this list: {after}", param="after")
        here = tuple_(last.created_at, last.id)
        query = query.where(place < here if order == "desc" else place > here)
    columns = (table.created_at, table.id)
    query = query.order_by(*(column.desc() if order == "desc" else column.asc() for column in columns))
    rows = session.scalars(query.limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit
