"""Migrations that may run while processes of the version before are at work."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, text

from storage import files, jobs, schema
from storage.database import Database
from tests.storage.rows import TEAM, add_file, add_job

REVISIONS = [
    script.revision for script in reversed(list(ScriptDirectory.from_config(schema.alembic_config()).walk_revisions()))
]

#: What only adds: who doesn't know of it works as before. A new column must fill itself.
ADDITIVE = (
    r"CREATE TABLE .*",
    r"CREATE (UNIQUE )?INDEX .*",
    r"CREATE EXTENSION IF NOT EXISTS .*",
    r"ALTER TABLE \w+ ADD COLUMN \w+ (?!.*NOT NULL).*",
    r"ALTER TABLE \w+ ADD COLUMN \w+ .* DEFAULT .*",
)
#: What else a migration does, and why processes of the version before can live with it.
ALLOWED = {
    "ALTER TABLE jobs ALTER COLUMN max_seq_length DROP NOT NULL": "who writes a length goes on writing it",
    "ALTER TABLE models ALTER COLUMN max_seq_length DROP NOT NULL": "who writes a length goes on writing it",
    "CREATE FUNCTION tell_names_changed() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN PERFORM pg_notify('likeness_names', ''); RETURN NULL; END $$": "nothing calls it but its triggers",
    **{
        f"CREATE TRIGGER tell_names_changed AFTER INSERT OR UPDATE OR DELETE ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION tell_names_changed()": "it changes no row, and tells whoever listens"
        for table in ("models", "api_keys", "aliases")
    },
}


def _upgrade(database: Database, revision: str) -> list[str]:
    """Migrate to a revision. Returns the statements that changed something, Alembic's own excepted."""
    statements: list[str] = []

    def note(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if "alembic_version" not in statement and not statement.lstrip().startswith("SELECT"):
            statements.append(" ".join(statement.split()))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        with database.engine.connect() as connection:
            command.upgrade(schema.alembic_config(connection), revision)
            connection.commit()
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    return statements


def _is_additive(statement: str) -> bool:
    return statement in ALLOWED or any(re.fullmatch(pattern, statement) for pattern in ADDITIVE)


def test_every_migration_only_adds(empty: Database) -> None:
    statements = {revision: _upgrade(empty, revision) for revision in REVISIONS}
    assert all(statements.values())
    others = {name: [one for one in said if not _is_additive(one)] for name, said in statements.items()}
    assert {name: said for name, said in others.items() if said} == {}
    assert set(ALLOWED) <= {one for said in statements.values() for one in said}


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE jobs DROP COLUMN seed",
        "ALTER TABLE jobs ADD COLUMN place TEXT NOT NULL",
        "ALTER TABLE jobs ALTER COLUMN seed SET NOT NULL",
        "ALTER TABLE jobs RENAME COLUMN seed TO start",
        "DROP TABLE jobs",
        "UPDATE jobs SET seed = 0",
        "ALTER TABLE jobs ADD CONSTRAINT ck CHECK (seed > 0)",
    ],
)
def test_what_would_stop_the_version_before_is_not_taken_for_an_addition(statement: str) -> None:
    assert not _is_additive(statement)


@pytest.mark.parametrize("revision", REVISIONS)
def test_rows_as_an_earlier_version_writes_them_are_taken(empty: Database, revision: str) -> None:
    """It names the columns that it knows of, and no others."""
    _upgrade(empty, revision)
    known = sa.MetaData()
    known.reflect(empty.engine)
    _upgrade(empty, "head")
    with empty.engine.begin() as connection:
        # Whose rows they are is of no matter here.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in known.tables.values():
            if table.name != "alembic_version":
                connection.execute(table.insert().values(_some_values(table)))


def _some_values(table: sa.Table) -> dict[str, Any]:
    """A value for every column that wants one."""
    wanted = [column for column in table.columns if not column.nullable and column.server_default is None]
    return {column.name: _some_value(column.type) for column in wanted if column.identity is None}


def _some_value(kind: Any) -> Any:
    for types, value in (((sa.Integer, sa.Float), 1), ((sa.Boolean,), True), ((sa.Text,), "x"), ((sa.JSON,), {})):
        if isinstance(kind, types):
            return value
    return sa.func.now()


def test_rows_of_before_the_newest_migration_are_served_after_it(empty: Database) -> None:
    schema.migrate(empty)
    file_id = add_file(empty)
    job_id = add_job(empty, "running", training_file=file_id)
    _back(empty)
    schema.migrate(empty)
    with empty.session(TEAM) as session:
        assert files.get(session, file_id).status == "processed"
        assert jobs.cancel(session, job_id).state == "cancelled"


def test_a_schema_that_a_later_version_has_migrated_serves_this_one_and_an_older_does_not(database: Database) -> None:
    assert schema.is_current(database)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    assert schema.is_current(database)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :older"), {"older": REVISIONS[-2]})
    assert not schema.is_current(database)


def _back(database: Database) -> None:
    with database.engine.connect() as connection:
        command.downgrade(schema.alembic_config(connection), "-1")
        connection.commit()


# While others are at work


def _write_everywhere(connection: Connection) -> None:
    """Hold what a transaction holds that has written to every table."""
    tables = set(sa.inspect(connection).get_table_names()) - {"alembic_version"}
    connection.execute(text(f"LOCK TABLE {', '.join(sorted(tables))} IN ROW EXCLUSIVE MODE"))


def test_a_migration_that_waits_for_a_table_lets_others_at_it_and_comes_through(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_LONGEST_WAIT", "100ms")
    _back(database)
    reached: list[str] = []
    migration = threading.Thread(target=lambda: reached.append(schema.migrate(database)))
    waits = text(
        "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
        "WHERE datname = current_database() AND locktype = 'relation' AND NOT granted"
    )
    with database.engine.connect() as holder:
        _write_everywhere(holder)
        migration.start()
        for _ in range(2):  # It waits, gives up, and comes again.
            while not holder.scalar(waits):
                assert migration.is_alive()
            while holder.scalar(waits):
                assert migration.is_alive()
    migration.join()
    assert reached == [schema.newest_revision()]


def test_a_migration_that_never_gets_its_table_says_so_and_leaves_nothing_half_done(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_LONGEST_WAIT", "50ms")
    monkeypatch.setattr(schema, "_TRIES", 1)
    monkeypatch.setattr(schema, "_PAUSE_SECONDS", 0.0)
    _back(database)
    with database.engine.connect() as holder:
        _write_everywhere(holder)
        with pytest.raises(schema.SchemaBusyError, match="locked by transactions that don't end"):
            schema.migrate(database)
    assert not schema.is_current(database)
    assert schema.migrate(database) == schema.newest_revision()


def test_a_migration_that_waits_for_another_for_too_long_says_so(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_LONGEST_MIGRATION", "50ms")
    with database.engine.connect() as holder:
        holder.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": schema._MIGRATION_LOCK})
        with pytest.raises(schema.SchemaBusyError, match="another process has been migrating"):
            schema.migrate(database)
        holder.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": schema._MIGRATION_LOCK})
    assert schema.migrate(database) == schema.newest_revision()
