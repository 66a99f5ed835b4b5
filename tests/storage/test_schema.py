from __future__ import annotations

import threading

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from storage import schema
from storage.database import _CONNECT_ARGUMENTS, Database
from storage.tables import Base, Team
from tests.storage.rows import TEAM


def test_migrations_lead_to_the_tables_of_the_code(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_database_that_was_never_migrated_is_not_current(empty: Database) -> None:
    assert not schema.is_current(empty)

    schema.migrate(empty)

    assert schema.is_current(empty)


def test_migrating_makes_the_default_team(empty: Database) -> None:
    schema.migrate(empty)

    with empty.session_across_teams() as session:
        assert session.get(Team, TEAM) is not None


def test_migrating_twice_changes_nothing(database: Database) -> None:
    assert schema.migrate(database) == schema.migrate(database) == schema.newest_revision()


def test_two_processes_may_migrate_at_once(empty: Database) -> None:
    together = threading.Barrier(2)
    reached: list[str] = []

    def migrate() -> None:
        together.wait(timeout=30)
        reached.append(schema.migrate(empty))

    threads = [threading.Thread(target=migrate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert reached == [schema.newest_revision()] * 2


def test_a_migration_waits_for_another_longer_than_a_request_may_take(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_CONNECT_ARGUMENTS, "options", "-c statement_timeout=100")
    hurried = Database(database.engine.url.render_as_string(hide_password=False), pool_size=1)
    reached: list[str] = []
    migration = threading.Thread(target=lambda: reached.append(schema.migrate(hurried)))
    waits_long = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory' "
        "AND clock_timestamp() - query_start > interval '200 milliseconds'"
    )
    with database.engine.connect() as holder:
        holder.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": schema._MIGRATION_LOCK})
        holder.commit()
        migration.start()
        while holder.scalar(waits_long) == 0:
            assert migration.is_alive()
            holder.commit()
        holder.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": schema._MIGRATION_LOCK})
    migration.join()

    assert reached == [schema.newest_revision()]
    with hurried.engine.connect() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "100ms"
    hurried.dispose()


def test_downgrading_to_nothing_and_up_again_leads_to_the_same_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        command.downgrade(schema.alembic_config(connection), "base")
        connection.commit()
        tables = text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        assert connection.scalars(tables).all() == ["alembic_version"]

    schema.migrate(database)

    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
