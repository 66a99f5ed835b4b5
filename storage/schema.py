"""The database's schema: bring it up to date, or say that it isn't."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from storage import teams
from storage.database import Database

# Any number will do, as long as every version of the code agrees on it.
_MIGRATION_LOCK = 7_310_041_211


def migrate(database: Database) -> str:
    """Run the migrations that are missing and make the default team. Returns the revision reached.

    Several processes may call it at once: one migrates, the others wait and find it done.
    """
    with database.engine.connect() as connection:
        # Waiting for another process' migration, and migrating a large table, may take longer than a request may.
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        connection.commit()
        try:
            command.upgrade(alembic_config(connection), "head")
            connection.commit()
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _MIGRATION_LOCK})
            connection.execute(text("RESET statement_timeout"))
            connection.commit()
    with database.session_across_teams() as session:
        teams.ensure_default_team(session)
    return newest_revision()


def newest_revision() -> str:
    """The revision this code works with."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head() or ""


def is_current(database: Database) -> bool:
    """Whether the database has the revision this code works with."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == newest_revision()


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration without a file: the scripts beside this module, on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
