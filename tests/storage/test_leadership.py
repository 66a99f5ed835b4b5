from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Row, text
from sqlalchemy.exc import OperationalError

from storage.database import Database
from storage.leadership import Leadership
from tests.processes import until

TERMS = text("SELECT term, holder FROM leader_terms ORDER BY term")
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


def test_a_leader_that_falls_silent_is_followed_by_another_when_its_term_is_over(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.leadership.TERM_SECONDS", 0.3)
    silent, second = Leadership(database), Leadership(database)
    assert silent.is_mine()
    assert not second.is_mine()

    until(second.is_mine)  # the other one's connection, which holds the lock, still stands

    with pytest.raises(OperationalError):
        silent.is_mine()
    assert second.is_mine()
    assert not silent.is_mine()
    second.give_up()


def test_a_leader_that_is_heard_of_leads_for_longer_than_a_term(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.leadership.TERM_SECONDS", 2.0)
    leader, other = Leadership(database), Leadership(database)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        assert leader.is_mine()
        assert not other.is_mine()

    assert [row.term for row in terms(database)] == [1]
    leader.give_up()


def test_a_leader_whose_term_is_over_leads_on_if_nobody_else_came(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.leadership.TERM_SECONDS", 0.001)
    leader = Leadership(database)
    assert leader.is_mine()
    assert leader.is_mine()
    leader.give_up()


def test_each_term_is_written_down_with_its_leader(database: Database) -> None:
    for _ in range(3):
        leader = Leadership(database)
        assert leader.is_mine()
        assert leader.is_mine()
        leader.give_up()

    assert [row.term for row in terms(database)] == [1, 2, 3]
    assert {row.holder for row in terms(database)} == {f"{socket.gethostname()}-{os.getpid()}"}


def terms(database: Database) -> Sequence[Row[Any]]:
    with database.session_across_teams() as session:
        return session.execute(TERMS).all()


def end_connections_of_leaders(database: Database) -> None:
    with database.session_across_teams() as session:
        ended = session.scalars(text(f"SELECT pg_terminate_backend(pid, 10000) FROM ({HOLDERS}) AS holders")).all()
    assert ended == [True]
