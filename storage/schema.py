"""The database's schema: bring it up to date, or say that it isn't."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from storage import teams
from storage.database import Database

# Any number will do, as long as every version of the code agrees on it.
_MIGRATION_LOCK = 7_310_041_211

_LONGEST_MIGRATION = "10min"
# A migration that waits for a table makes everybody behind it wait too: rather give up, let them, and try again.
_LONGEST_WAIT = "1s"
_TRIES = 60
_PAUSE_SECONDS = 0.5


class SchemaBusyError(Exception):
    """A migration didn't get the locks that it needs; nothing is half done, and it can be run again."""


def migrate(database: Database) -> str:
    """Run the migrations that are missing and make the default team. Returns the revision reached.

    Several processes may call it at once: one migrates, the others wait and find it done. Others may work with the
    tables meanwhile. Raises SchemaBusyError.
    """
    with database.engine.connect() as connection:
        try:
            # Waiting for another process' migration, and migrating a large table, may take longer than a request may.
            _run(connection, "SET statement_timeout = 0", f"SET lock_timeout = '{_LONGEST_MIGRATION}'")
            with _told_if_busy(f"another process has been migrating for {_LONGEST_MIGRATION}"):
                _run(connection, f"SELECT pg_advisory_lock({_MIGRATION_LOCK})")
            _run(connection, f"SET lock_timeout = '{_LONGEST_WAIT}'")
            _upgrade_patiently(connection)
        finally:
            connection.rollback()
            _run(connection, "SELECT pg_advisory_unlock_all()", "RESET statement_timeout", "RESET lock_timeout")
    with database.session_across_teams() as session:
        teams.ensure_default_team(session)
    return newest_revision()


def _upgrade_patiently(connection: Connection) -> None:
    for last in (*[False] * _TRIES, True):
        try:
            with _told_if_busy("tables that it changes are locked by transactions that don't end"):
                command.upgrade(alembic_config(connection), "head")
                connection.commit()
            return
        except SchemaBusyError:
            connection.rollback()
            if last:
                raise
        # Whoever waits behind a waiting migration gets its turn.
        time.sleep(_PAUSE_SECONDS)


@contextmanager
def _told_if_busy(why: str) -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        message = f"The schema could not be migrated: {why}. pg_stat_activity shows who it is; run it again then."
        raise SchemaBusyError(message) from error


def _run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        connection.execute(text(statement))
    connection.commit()


@cache
def newest_revision() -> str:
    """The revision this code works with."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head() or ""


def is_current(database: Database) -> bool:
    """Whether the database has all that this code works with. One that a later version has migrated has more."""
    with database.engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    return revision is not None and revision not in _older_revisions()


@cache
def _older_revisions() -> frozenset[str]:
    scripts = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    return frozenset(script.revision for script in scripts) - {newest_revision()}


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration without a file: the scripts beside this module, on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
