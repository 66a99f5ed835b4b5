"""Who reads a file or prepares a job: one process at a time, which holds an advisory lock."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, column, func, text
from sqlalchemy.exc import SQLAlchemyError

from storage.database import Database

_TRY_LOCK = text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")
# PostgreSQL shows a lock's number in two halves.
_HELD = text(
    "SELECT (CAST(classid AS bigint) << 32) | CAST(objid AS bigint) AS number FROM pg_locks "
    "WHERE locktype = 'advisory' AND objsubid = 1 AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
).columns(column("number", BigInteger))


@contextmanager
def claimed(database: Database, name: str) -> Iterator[bool]:
    """Whether nobody else holds the claim on `name`, a file's or a job's id; then it is held during the block.

    The lock is its connection's, and so ends with this process however that ends. Raises OperationalError.
    """
    connection = database.connect_alone()
    try:
        yield bool(connection.scalar(_TRY_LOCK, {"name": name}))
    finally:
        # Said, since a server takes a moment to notice that a connection was closed. One that is lost holds nothing.
        with suppress(SQLAlchemyError):
            connection.execute(text("SELECT pg_advisory_unlock_all()"))
        connection.close()


def is_claimed(name: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether somebody holds the claim on a name, in a query over many."""
    return func.hashtextextended(name, 0).in_(_HELD)
