"""Hearing of what changes: from every table, in every way, and knowing when one doesn't hear."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from storage import aliases, models, name_changes, teams
from storage.database import Database
from storage.name_changes import NameChanges, UnheardError
from storage.tables import ApiKey
from tests.proxies import PostgresProxy
from tests.storage.rows import TEAM, add_job, job_of


class Ear:
    """What was heard, proof by proof."""

    def __init__(self, database: Database) -> None:
        self.count = 0
        self.changes = NameChanges(database, self._note)

    def _note(self) -> None:
        self.count += 1

    def heard(self) -> bool:
        """Whether a change was heard since the last look."""
        before = self.count
        self.changes.prove()
        return self.count > before


@pytest.fixture
def ear(database: Database) -> Iterator[Ear]:
    ear = Ear(database)
    yield ear
    ear.changes.close()


def test_every_change_of_a_key_a_model_and_an_alias_is_heard(database: Database, ear: Ear) -> None:
    assert not ear.heard()
    with database.session(TEAM) as session:
        key_id = teams.create_key(session, "laptop")[0].id
    assert ear.heard()
    with database.session(TEAM) as session:
        teams.revoke_key(session, key_id)
    assert ear.heard()
    with database.session(TEAM) as session:
        session.delete(session.get_one(ApiKey, key_id))
    assert ear.heard()
    model = job_of(database, add_job(database, "succeeded")).fine_tuned_model
    assert ear.heard()
    with database.session_across_teams() as session:
        models.record_damage(session, model, "config.json is missing")
    assert ear.heard()
    with database.session(TEAM) as session:
        aliases.put(session, "search", model)
    assert ear.heard()
    with database.session(TEAM) as session:
        aliases.put(session, "search", "tiny/bert")
    assert ear.heard()
    with database.session(TEAM) as session:
        aliases.remove(session, "search")
    assert ear.heard()
    with database.session(TEAM) as session:
        models.delete(session, model)
    assert ear.heard()
    assert not ear.heard()


def test_what_is_not_committed_is_not_heard(database: Database, ear: Ear) -> None:
    with database.session(TEAM) as session:
        teams.create_key(session, "laptop")
        session.rollback()
    assert not ear.heard()


def test_a_word_that_goes_to_nobody_is_no_proof(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_changes, "_ANSWER_SECONDS", 0.05)
    # As a pooler does that gives the connection to others in between.
    ear.changes._connection.exec_driver_sql("UNLISTEN *")

    with pytest.raises(UnheardError):
        ear.changes.prove()


def test_a_schema_that_tells_nothing_is_no_proof(database: Database, ear: Ear) -> None:
    with database.session_across_teams() as session:
        session.execute(text("ALTER TABLE api_keys DISABLE TRIGGER tell_names_changed"))
    with pytest.raises(UnheardError, match="likeness migrate"):
        ear.changes.prove()


def test_a_database_without_tables_is_no_proof(empty: Database) -> None:
    ear = Ear(empty)
    with pytest.raises(UnheardError, match="likeness migrate"):
        ear.changes.prove()
    ear.changes.close()


@pytest.mark.parametrize("away", [PostgresProxy.refuse, PostgresProxy.fall_silent])
def test_who_is_cut_off_is_told_in_time(proxy: PostgresProxy, away: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_changes, "_ANSWER_SECONDS", 0.5)
    cut_off = Ear(Database(proxy.url, pool_size=1))
    assert not cut_off.heard()
    away(proxy)
    with pytest.raises(OperationalError):
        cut_off.heard()
    cut_off.changes.close()
