from __future__ import annotations

import threading

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from storage.database import Database
from storage.leadership import Leadership

HOLDERS = "SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database "
HOLDERS += "WHERE locktype = 'advisory' AND datname = current_database()"


def test_one_of_two_leads(database: Database) -> None:
    first, second = Leadership(database), Leadership(database)

    assert first.is_mine()
    assert not second.is_mine()
    assert first.is_mine()
    first.give_up()


def test_whoever_gives_up_makes_room(database: Database) -> None:
    first, second = Leadership(database), Leadership(database)
    assert first.is_mine()

    first.give_up()

    assert second.is_mine()
    assert not first.is_mine()
    second.give_up()


def test_a_leader_whose_connection_ends_knows_it_and_somebody_leads_again(database: Database) -> None:
    first, second = Leadership(database), Leadership(database)
    assert first.is_mine()

    end_connections_of_leaders(database)

    with pytest.raises(OperationalError):
        first.is_mine()
    assert second.is_mine()
    assert not first.is_mine()
    second.give_up()


def test_leading_does_not_use_the_pool_which_would_lose_the_lock(database: Database) -> None:
    leader = Leadership(database)
    assert leader.is_mine()

    database.dispose()

    assert not Leadership(database).is_mine()
    assert leader.is_mine()
    leader.give_up()


def test_a_server_that_is_away_leaves_nobody_leading_and_no_connection() -> None:
    leader = Leadership(Database("postgresql://postgres@/postgres?host=/nonexistent", pool_size=1))

    for _ in range(2):
        with pytest.raises(OperationalError):
            leader.is_mine()
    leader.give_up()


def test_of_many_who_ask_at_once_one_leads(database: Database) -> None:
    candidates = [Leadership(database) for _ in range(6)]
    together = threading.Barrier(len(candidates))
    answers: list[bool] = []

    def ask(candidate: Leadership) -> None:
        together.wait(timeout=30)
        answers.append(candidate.is_mine())

    threads = [threading.Thread(target=ask, args=(candidate,)) for candidate in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for candidate in candidates:
        candidate.give_up()

    assert sorted(answers) == [False] * 5 + [True]


def end_connections_of_leaders(database: Database) -> None:
    with database.session_across_teams() as session:
        ended = session.scalars(text(f"SELECT pg_terminate_backend(pid, 10000) FROM ({HOLDERS}) AS holders")).all()
    assert ended == [True]
