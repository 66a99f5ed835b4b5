"""A database before the first migration."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from storage.database import Database


@pytest.fixture
def empty(database_url: str) -> Iterator[Database]:
    """A database without any table of ours."""
    database = Database(database_url, pool_size=3)
    with database.engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    yield database
    database.dispose()
