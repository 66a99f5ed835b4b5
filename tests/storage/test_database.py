from __future__ import annotations

import pytest
from sqlalchemy import delete, exists, func, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import aliased

from storage.database import Database
from storage.tables import ApiKey, File, Job, Model
from tests.processes import until
from tests.proxies import PostgresProxy
from tests.storage.rows import OTHER_TEAM, TEAM, add_file, add_job, add_team, file_of


@pytest.fixture
def both(database: Database) -> tuple[str, str]:
    """A file of each of two teams."""
    add_team(database)
    return add_file(database), add_file(database, team=OTHER_TEAM)


def test_a_session_selects_rows_of_its_team_only(database: Database, both: tuple[str, str]) -> None:
    with database.session(TEAM) as session:
        assert session.scalars(select(File.id)).all() == [both[0]]
        assert session.scalars(select(File)).one().id == both[0]
        assert session.scalar(select(func.count()).select_from(File)) == 1


def test_a_session_across_teams_sees_all(database: Database, both: tuple[str, str]) -> None:
    with database.session_across_teams() as session:
        assert set(session.scalars(select(File.id))) == set(both)


def test_another_teams_row_is_not_found_by_its_primary_key(database: Database, both: tuple[str, str]) -> None:
    with database.session(TEAM) as session:
        assert session.get(File, both[0]) is not None
        assert session.get(File, both[1]) is None


def test_an_update_reaches_rows_of_its_team_only(database: Database, both: tuple[str, str]) -> None:
    with database.session(TEAM) as session:
        session.execute(update(File).values(filename="changed"))

    assert [file_of(database, file_id).filename for file_id in both] == ["changed", "rows.jsonl"]


def test_a_delete_reaches_rows_of_its_team_only(database: Database, both: tuple[str, str]) -> None:
    with database.session(TEAM) as session:
        session.execute(delete(File))

    with database.session_across_teams() as session:
        assert session.scalars(select(File.id)).all() == [both[1]]


def test_a_join_meets_rows_of_its_team_only(database: Database) -> None:
    add_team(database)
    foreign_job = add_job(database, team=OTHER_TEAM)

    with database.session(TEAM) as session:
        # A row of ours that names another team's, which nothing but a defect could have written.
        foreign = select(File.id, Job.id).join(Job, Job.training_file == File.id)
        assert session.execute(foreign).all() == []
        assert session.execute(select(aliased(File).id)).all() == []
        assert session.scalar(select(exists().where(Job.id == foreign_job))) is False
        assert session.scalars(select(Model.id).where(Model.job_id.in_(select(Job.id)))).all() == []


def test_a_new_row_belongs_to_the_sessions_team(database: Database) -> None:
    add_team(database)
    with database.session(OTHER_TEAM) as session:
        session.add(ApiKey(id="key-1", name="name", digest="digest", hint="hint"))

    with database.session_across_teams() as session:
        assert session.get_one(ApiKey, "key-1").team_id == OTHER_TEAM


def test_a_row_of_another_team_is_refused(database: Database) -> None:
    add_team(database)
    foreign = ApiKey(id="key-1", name="name", digest="digest", hint="hint", team_id=OTHER_TEAM)

    with pytest.raises(PermissionError, match=OTHER_TEAM), database.session(TEAM) as session:
        session.add(foreign)

    with database.session_across_teams() as session:
        assert session.get(ApiKey, "key-1") is None


def test_a_row_cannot_be_given_to_another_team(database: Database, both: tuple[str, str]) -> None:
    with pytest.raises(PermissionError, match=OTHER_TEAM), database.session(TEAM) as session:
        session.get_one(File, both[0]).team_id = OTHER_TEAM

    assert file_of(database, both[0]).team_id == TEAM


def test_nothing_of_a_session_that_fails_is_kept(database: Database, both: tuple[str, str]) -> None:
    def change(*, then: int) -> None:
        with database.session(TEAM) as session:
            session.get_one(File, both[0]).filename = "changed"
            session.flush()
            assert 1 / then

    with pytest.raises(ZeroDivisionError):
        change(then=0)

    assert file_of(database, both[0]).filename == "rows.jsonl"


def test_a_statement_that_takes_too_long_is_an_operational_error(database: Database) -> None:
    with database.engine.connect() as connection:
        connection.execute(select(func.set_config("statement_timeout", "50", True)))
        with pytest.raises(OperationalError):
            connection.execute(select(func.pg_sleep(60)))


def test_a_connection_that_the_server_ended_is_replaced_unnoticed(database: Database) -> None:
    with database.session(TEAM) as session:
        ours = session.scalar(select(func.pg_backend_pid()))
    other = Database(database.engine.url.render_as_string(hide_password=False), pool_size=1)
    with other.session_across_teams() as session:
        session.execute(select(func.pg_terminate_backend(ours)))
    other.dispose()

    database.ping()


def test_a_server_that_is_away_is_an_operational_error() -> None:
    away = Database("postgresql://postgres@/postgres?host=/nonexistent", pool_size=1)

    with pytest.raises(OperationalError):
        away.ping()


def test_a_network_that_swallows_what_it_is_given_is_given_up_and_the_next_connection_is_a_new_one(
    proxy: PostgresProxy,
) -> None:
    through = Database(proxy.url, pool_size=1, answer_seconds=0.3)
    alone = through.connect_alone()
    with through.session_across_teams() as session:
        session.execute(select(func.count(File.id)))
        proxy.fall_silent()
        with pytest.raises(OperationalError):
            session.execute(select(func.count(File.id)))
        proxy.recover()
        session.get_transaction().rollback()
    until(lambda: answers(through))

    proxy.fall_silent()
    with pytest.raises(OperationalError):
        alone.execute(text("SELECT 1"))
    assert alone.invalidated
    alone.close()
    proxy.recover()
    through.dispose()


def answers(database: Database) -> bool:
    try:
        database.ping()
    except OperationalError:
        return False
    return True


def test_a_server_notices_soon_that_a_client_has_vanished(database: Database) -> None:
    wanted = {"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3"}
    wanted["tcp_user_timeout"] = "10000"

    url = database.engine.url.render_as_string(hide_password=False)
    hurried = Database(url, pool_size=1, answer_seconds=5.0)
    for connection in (database.engine.connect(), database.connect_alone(), hurried.engine.connect()):
        with connection:
            # On a Unix socket they are taken, and have no effect.
            told = connection.execute(text("SELECT name, reset_val FROM pg_settings WHERE name LIKE 'tcp_%'"))
            assert {row.name: row.reset_val for row in told} == wanted
    hurried.dispose()
