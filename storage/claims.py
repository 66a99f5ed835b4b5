"""Who reads a file or prepares a job: one process at a time, which holds an advisory lock."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from storage.database import Database

_TRY_LOCK = text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")


@contextmanager
def claimed(database: Database, name: str) -> Iterator[bool]:
    """Whether nobody else holds the claim on `name`, a file's or a job's id; then it is held during the block.

    The lock is its connection's, and so ends with this process however that ends. Raises OperationalError.
    """
    connection = database.connect_alone()
    try:
        yield bool(connection.scalar(_TRY_LOCK, {"name": name}))
    finally:
        # Said, since a server takes a moment to notice that a connection was closed.
        with suppress(OperationalError):
            connection.execute(text("SELECT pg_advisory_unlock_all()"))
        connection.close()
