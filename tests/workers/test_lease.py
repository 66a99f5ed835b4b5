from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from storage import attempts, jobs
from storage.database import Database
from storage.held_lease import HeldLease
from tests.processes import until
from tests.proxies import PostgresProxy
from tests.storage.rows import TEAM, add_job, expire_lease, job_of, lease_of, rescue
from workers.lease import KeptLease, answer_within
from workers.shared_page import SharedPage

SECONDS = 3.0
Take = Callable[..., KeptLease]


@pytest.fixture
def take(database: Database) -> Iterator[Take]:
    """Begin a job's first attempt, and make its lease; it is kept from when it is entered."""
    pages: list[SharedPage] = []

    def begin(job_id: str, through: Database | None = None, *, seconds: float = SECONDS) -> KeptLease:
        pages.append(SharedPage.new())
        held = HeldLease(through or database, answer_seconds=answer_within(seconds))
        held.hold(job_id, 1, "worker-1")
        taken = time.monotonic()
        with database.session_across_teams() as session:
            assert attempts.start(session, job_id, 1, "worker-1", lease_seconds=seconds) is not None
        return KeptLease(held, seconds=seconds, taken=taken, page=pages[-1])

    yield begin
    for page in pages:
        page.close()


def test_a_lease_is_renewed_while_the_main_thread_is_busy(database: Database, take: Take) -> None:
    job_id = add_job(database)
    with take(job_id, seconds=1.0) as lease:
        first, began = lease.ends, time.monotonic()
        while lease.ends < first + 2.0:  # nothing but Python, and all of it
            assert time.monotonic() < began + 60
        assert rescue(database) == 0
    assert not lease.lost


def test_a_lease_that_nobody_renews_ends_by_the_clock_of_this_machine_from_when_it_was_asked_for(
    database: Database, take: Take
) -> None:
    before = time.monotonic()
    lease = take(add_job(database), seconds=45.0)
    after = time.monotonic()
    with lease:
        ends = lease.ends

    assert before + 45 <= ends <= after + 45
    assert lease.ends - lease.stops == pytest.approx(10)


def test_the_lease_of_a_cancelled_job_is_lost(database: Database, take: Take) -> None:
    job_id = add_job(database)
    with take(job_id) as lease:
        with database.session(TEAM) as session:
            jobs.cancel(session, job_id)
        until(lambda: lease.lost)


def test_the_lease_of_a_job_that_was_given_to_another_is_lost(database: Database, take: Take) -> None:
    job_id = add_job(database)
    lease = take(job_id)
    expire_lease(database, job_id)
    assert rescue(database) == 1
    with database.session_across_teams() as session:
        assert attempts.start(session, job_id, 2, "worker-2") is not None

    with lease:
        until(lambda: lease.lost)
    held = lease_of(database, job_id)
    assert held is not None
    assert held.worker_id == "worker-2"


def test_a_pause_that_is_asked_for_is_heard(database: Database, take: Take) -> None:
    job_id = add_job(database)
    with take(job_id) as lease:
        assert not lease.orders.pause
        with database.session(TEAM) as session:
            jobs.pause(session, job_id)
        until(lambda: lease.orders.pause)


def test_a_job_that_takes_longer_than_it_may_is_heard_of(database: Database, take: Take) -> None:
    job_id = add_job(database, max_runtime_seconds=1)
    with take(job_id) as lease:
        until(lambda: lease.orders.overdue)


def test_a_lease_is_kept_while_all_jobs_are_locked(database: Database, take: Take) -> None:
    job_id = add_job(database)
    with take(job_id, seconds=1.0) as lease, database.session_across_teams() as session:
        session.execute(text("LOCK TABLE jobs"))
        first = lease.ends
        until(lambda: lease.ends > first + 2.0)
    assert job_of(database, job_id).state == "running"


def test_a_network_that_swallows_everything_costs_the_lease_in_time_and_is_used_again_when_it_is_back(
    database: Database, take: Take, proxy: PostgresProxy
) -> None:
    job_id = add_job(database)
    through = Database(proxy.url, pool_size=1)
    with take(job_id, through) as lease:
        first = lease.ends
        until(lambda: lease.ends > first)
        proxy.fall_silent()
        until(lambda: time.monotonic() > lease.stops)
        assert time.monotonic() < lease.ends + 1
        assert not lease.lost, "nobody could say so"

        proxy.recover()
        until(lambda: lease.stops > time.monotonic())
    through.dispose()


def test_time_that_a_renewal_takes_counts_against_the_lease(
    database: Database, take: Take, proxy: PostgresProxy
) -> None:
    job_id = add_job(database)
    through = Database(proxy.url, pool_size=1)
    lease = take(job_id, through, seconds=1.0)
    with lease, database.session_across_teams() as session:
        session.execute(text("LOCK TABLE leases"))
        asked = time.monotonic()
        held_back = lease.ends
        until(lambda: time.monotonic() > asked + 0.5)
        assert lease.ends <= max(held_back, asked + 1.0)
        session.get_transaction().rollback()
        until(lambda: lease.ends > asked + 1.0)
    through.dispose()


def test_a_database_that_goes_away_is_no_end_of_the_thread(
    take: Take, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = take(add_job(database))
    lease._held.close()
    away = Database("postgresql://postgres@/postgres?host=/nonexistent", pool_size=1)
    monkeypatch.setattr(lease._held, "_database", away)
    with lease:
        first = lease.ends
        until(lambda: time.monotonic() > lease.stops)
        assert lease.ends == first
        assert lease._thread.is_alive()
