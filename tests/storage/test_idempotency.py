from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from api_schemas.errors import LikenessError
from storage import idempotency
from storage.database import Database
from storage.idempotency import Asking
from storage.tables import KeptAnswer
from tests.storage.rows import OTHER_TEAM, TEAM, add_team

NAMED = Asking("fingerprint", key="key")
#: How long a client waits that is to send again.
PATIENCE = timedelta(minutes=12)


def sent(retry: int, *, ago: timedelta = timedelta(0)) -> Asking:
    """A request of a client that has sent it so many times before."""
    return Asking("fingerprint", retry=retry, reach=retry * PATIENCE, came_at=time.monotonic() - ago.total_seconds())


def answer(database: Database, asking: Asking, body: str, *, team: str = TEAM) -> str:
    """What the request gets: what it got before, or else `body`."""
    with database.session(team) as session:
        before = idempotency.first_answer(session, asking)
        if before is None:
            idempotency.keep(session, asking, body)
        return before or body


def age_answers(database: Database, age: timedelta) -> None:
    """Move all answers into the past, which is what waiting would do."""
    with database.session_across_teams() as session:
        for kept in session.scalars(select(KeptAnswer)):
            kept.created_at = func.clock_timestamp() - age


def count(database: Database) -> int:
    with database.session_across_teams() as session:
        return session.scalar(select(func.count(KeptAnswer.id)))


# Under a key


def test_a_key_gets_its_first_answer_again(database: Database) -> None:
    assert [answer(database, NAMED, body) for body in "abc"] == ["a"] * 3
    assert answer(database, replace(NAMED, key="another"), "d") == "d"


def test_a_key_means_the_same_request_however_it_counts_its_retries(database: Database) -> None:
    assert answer(database, replace(NAMED, retry=0), "a") == "a"
    assert answer(database, replace(NAMED, retry=0), "b") == "a"


def test_a_key_of_another_request_is_refused(database: Database) -> None:
    answer(database, NAMED, "a")
    with pytest.raises(LikenessError) as refusal:
        answer(database, replace(NAMED, fingerprint="another"), "b")
    assert (refusal.value.code, refusal.value.status) == ("idempotency_key_reused", 422)


def test_a_key_of_another_team_is_another_key(database: Database) -> None:
    add_team(database)
    assert answer(database, NAMED, "a") == "a"
    assert answer(database, replace(NAMED, fingerprint="another"), "b", team=OTHER_TEAM) == "b"


def test_a_key_is_in_use_until_its_transaction_ends_and_free_if_that_failed(database: Database) -> None:
    def fail() -> None:
        with database.session(TEAM) as session:
            assert idempotency.first_answer(session, NAMED) is None
            idempotency.keep(session, NAMED, "never heard")
            with pytest.raises(LikenessError) as refusal:
                answer(database, NAMED, "a")
            assert (refusal.value.code, refusal.value.status) == ("idempotency_key_in_use", 409)
            assert refusal.value.headers["Retry-After"]
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert answer(database, NAMED, "b") == "b"


def test_a_key_whose_process_was_killed_is_free_at_once(database: Database) -> None:
    killed = Database(database.engine.url.render_as_string(hide_password=False), pool_size=1)

    def be_killed() -> None:
        with killed.session(TEAM) as session:
            assert idempotency.first_answer(session, NAMED) is None
            backend = session.scalar(select(func.pg_backend_pid()))
            with database.session_across_teams() as other:
                # 10 s: until the server process is gone, not just told.
                assert other.scalar(select(func.pg_terminate_backend(backend, 10_000)))
            assert answer(database, NAMED, "a") == "a"
            idempotency.keep(session, NAMED, "b")

    with pytest.raises(OperationalError):
        be_killed()
    killed.dispose()
    assert answer(database, NAMED, "c") == "a"


def test_after_a_day_a_key_is_a_new_one(database: Database) -> None:
    answer(database, NAMED, "a")
    age_answers(database, idempotency.LIFETIME - timedelta(minutes=1))
    assert answer(database, NAMED, "b") == "a"
    age_answers(database, idempotency.LIFETIME + timedelta(seconds=1))
    assert answer(database, replace(NAMED, fingerprint="another"), "c") == "c"


def test_what_is_over_is_forgotten(database: Database) -> None:
    answer(database, NAMED, "a")
    answer(database, sent(0), "b")
    with database.session_across_teams() as session:
        assert idempotency.sweep(session) == 0
    age_answers(database, idempotency.LIFETIME + timedelta(seconds=1))
    with database.session_across_teams() as session:
        assert idempotency.sweep(session) == 2
    assert count(database) == 0


# Of clients that only count their retries


def test_a_retry_gets_the_answer_of_the_attempt_before(database: Database) -> None:
    assert [answer(database, sent(retry), str(retry)) for retry in range(3)] == ["0"] * 3


def test_two_equal_requests_are_two(database: Database) -> None:
    assert [answer(database, sent(0), body) for body in "ab"] == ["a", "b"]


def test_a_retry_gets_the_newest_of_equal_answers(database: Database) -> None:
    for body in "ab":
        answer(database, sent(0), body)
    assert answer(database, sent(1), "c") == "b"


def test_a_retry_whose_first_attempt_came_to_nothing_is_done(database: Database) -> None:
    assert answer(database, sent(1), "a") == "a"
    assert answer(database, sent(2), "b") == "a"


def test_a_second_first_retry_belongs_to_another_request(database: Database) -> None:
    answer(database, sent(0), "a")
    assert answer(database, sent(1), "b") == "a"
    # Of an equal request, whose own first attempt did not arrive.
    assert answer(database, sent(1), "c") == "c"


@pytest.mark.parametrize(("more", "expected"), [(-timedelta(minutes=1), "a"), (timedelta(minutes=1), "b")])
def test_a_retry_reaches_back_as_far_as_its_client_may_have_waited(
    database: Database, more: timedelta, expected: str
) -> None:
    answer(database, sent(0), "a")
    age_answers(database, PATIENCE + more)
    assert answer(database, sent(1), "b") == expected


def test_a_retry_that_takes_long_to_read_reaches_back_from_its_beginning(database: Database) -> None:
    answer(database, sent(0), "a")
    age_answers(database, PATIENCE + timedelta(minutes=1))
    assert answer(database, sent(1, ago=timedelta(minutes=2)), "b") == "a"


def test_an_attempt_that_its_own_retry_overtook_does_nothing(database: Database) -> None:
    assert answer(database, sent(1), "a") == "a"
    assert answer(database, sent(0, ago=timedelta(minutes=1)), "b") == "a"
    # One that began after that is another request.
    age_answers(database, timedelta(minutes=2))
    assert answer(database, sent(0, ago=timedelta(minutes=1)), "c") == "c"


def test_another_team_or_another_request_is_no_retry(database: Database) -> None:
    add_team(database)
    answer(database, sent(0), "a")
    assert answer(database, sent(1), "b", team=OTHER_TEAM) == "b"
    assert answer(database, replace(sent(1), fingerprint="another"), "c") == "c"


def test_attempts_that_arrive_at_once_are_one(database: Database) -> None:
    """However their commits fall."""
    bodies: list[str] = []

    def send(asking: Asking) -> None:
        bodies.append(answer(database, asking, str(asking.retry)))

    with database.session(TEAM) as session:
        # The first of them is at work while the others come.
        assert idempotency.first_answer(session, sent(0)) is None
        threads = [threading.Thread(target=send, args=(sent(retry),)) for retry in (1, 2)]
        for thread in threads:
            thread.start()
        waiting = text(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
            "WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted"
        )
        while session.scalar(waiting) < len(threads):
            assert all(thread.is_alive() for thread in threads)
        idempotency.keep(session, sent(0), "0")
    for thread in threads:
        thread.join()
    # The greater of the two may have come first; then the other is one that its retry overtook.
    assert bodies == ["0", "0"]


def test_a_client_that_says_nothing_of_itself_is_done_each_time(database: Database) -> None:
    assert [answer(database, Asking("fingerprint"), body) for body in "ab"] == ["a", "b"]
    assert count(database) == 0
