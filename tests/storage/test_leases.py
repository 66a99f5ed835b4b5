from __future__ import annotations

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from storage import attempts, jobs, leases
from storage.database import Database
from storage.held_lease import HeldLease, Orders
from storage.settings import StorageSettings
from storage.tables import OutboxMessage
from tests.storage.rows import TEAM, add_job, events_of, expire_lease, job_of, lease_of, rescue

ENDS = "SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM leases"


def held(database: Database, job_id: str, *, worker: str = "worker-1", attempt: int = 1) -> HeldLease:
    lease = HeldLease(database, answer_seconds=1.0)
    lease.hold(job_id, attempt, worker)
    return lease


def seconds_left(database: Database) -> float:
    with database.session_across_teams() as session:
        return float(session.scalar(text(ENDS)))


def test_a_lease_that_has_not_ended_is_left_alone(database: Database) -> None:
    job_id = add_job(database, "running")

    assert rescue(database) == 0
    assert job_of(database, job_id).state == "running"


@pytest.mark.parametrize("seconds", [3.0, 45.0])
def test_a_lease_is_as_long_as_its_worker_said_also_when_it_is_renewed(database: Database, seconds: float) -> None:
    job_id = add_job(database)
    with database.session_across_teams() as session:
        assert attempts.start(session, job_id, 1, "worker-1", lease_seconds=seconds) is not None
    assert 0 < seconds_left(database) <= seconds

    with database.session_across_teams() as session:
        session.execute(text("UPDATE leases SET expires_at = clock_timestamp()"))
    held(database, job_id).renew()

    assert seconds - 1 < seconds_left(database) <= seconds


def test_a_lease_that_is_renewed_too_late_and_in_time_before_anybody_noticed_goes_on(database: Database) -> None:
    job_id = add_job(database, "running")
    expire_lease(database, job_id)

    held(database, job_id).renew()

    assert rescue(database) == 0


@pytest.mark.parametrize(("worker", "attempt"), [("worker-2", 1), ("worker-1", 2)])
def test_nobody_else_can_renew_a_lease(database: Database, worker: str, attempt: int) -> None:
    job_id = add_job(database, "running")

    with pytest.raises(attempts.StaleAttempt):
        held(database, job_id, worker=worker, attempt=attempt).renew()


@pytest.mark.parametrize("state", ["queued", "paused", "succeeded", "failed", "cancelled"])
def test_a_job_that_does_not_run_has_no_lease(database: Database, state: str) -> None:
    job_id = add_job(database, state)

    assert lease_of(database, job_id) is None
    for ask in (held(database, job_id).renew, held(database, job_id).orders):
        with pytest.raises(attempts.StaleAttempt):
            ask()


def test_the_holder_is_told_of_a_pause_that_is_asked_for_and_taken_back(database: Database) -> None:
    job_id = add_job(database, "running")
    lease = held(database, job_id)
    assert lease.orders() == Orders(pause=False, overdue=False)

    with database.session(TEAM) as session:
        jobs.pause(session, job_id)
    assert lease.orders().pause
    with database.session(TEAM) as session:
        jobs.resume(session, job_id)
    assert not lease.orders().pause
    lease.close()


def test_a_lease_is_renewed_while_somebody_else_holds_the_job_or_all_jobs_locked(database: Database) -> None:
    job_id = add_job(database, "running")
    lease = held(database, job_id)
    with database.session_across_teams() as session:
        session.execute(text("SELECT id FROM jobs FOR UPDATE"))
        lease.renew()
        session.execute(text("LOCK TABLE jobs"))
        lease.renew()
    lease.close()


def test_a_connection_that_was_ended_is_replaced_with_the_next_call(database: Database) -> None:
    job_id = add_job(database, "running")
    lease = held(database, job_id)
    lease.renew()
    with database.session_across_teams() as session:
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        session.execute(text(f"SELECT pg_terminate_backend(pid, 10000) {others}"))

    with pytest.raises(OperationalError):
        lease.renew()
    lease.renew()
    lease.close()


# --- what happens when one ends ---


def test_an_expired_lease_gives_the_job_back_with_the_next_attempt(database: Database) -> None:
    job_id = add_job(database, "running")
    expire_lease(database, job_id)

    assert rescue(database) == 1

    job = job_of(database, job_id)
    assert (job.state, job.attempt, job.crashes, job.worker_id) == ("queued", 2, 1, None)
    assert lease_of(database, job_id) is None
    assert "worker-1 fell silent" in events_of(database, job_id)[-1].message
    with database.session_across_teams() as session:
        assert [job_id, 2] in session.scalars(select(OutboxMessage.arguments)).all()


def test_a_lease_is_rescued_once_by_two_who_try(database: Database) -> None:
    job_id = add_job(database, "running")
    expire_lease(database, job_id)

    with database.session_across_teams() as first:
        assert attempts.rescue(first, job_id, 1)
        with database.session_across_teams() as second:
            assert not attempts.rescue(second, job_id, 1)
    with database.session_across_teams() as third:
        assert not attempts.rescue(third, job_id, 1)

    assert job_of(database, job_id).attempt == 2


def test_a_lease_that_was_renewed_after_it_was_seen_to_have_ended_is_not_rescued(database: Database) -> None:
    job_id = add_job(database, "running")
    expire_lease(database, job_id)
    with database.session_across_teams() as session:
        seen = attempts.expired(session)
    assert seen == [(job_id, 1)]
    held(database, job_id).renew()

    with database.session_across_teams() as session:
        assert not attempts.rescue(session, *seen[0])
    assert job_of(database, job_id).state == "running"


def test_a_server_that_was_away_gives_leases_of_before_as_long_again(database: Database) -> None:
    job_id = add_job(database, "running")
    with database.session_across_teams() as session:
        session.execute(text("UPDATE leases SET expires_at = clock_timestamp() - interval '1 h', seconds = 1000000000"))
    # As if the server had been started a moment ago: it was, if leases are long enough.

    assert rescue(database) == 0
    assert job_of(database, job_id).state == "running"


@pytest.mark.parametrize(("age", "rescued"), [("-1 h", 0), ("1 h", 1)])
def test_an_attempt_that_an_older_worker_began_is_judged_by_what_that_wrote(
    database: Database, age: str, rescued: int
) -> None:
    job_id = add_job(database, "running")
    with database.session_across_teams() as session:
        session.execute(text("DELETE FROM leases"))
        jobs.get(session, job_id).lease_expires_at = func.clock_timestamp() - text(f"interval '{age}'")

    assert rescue(database) == rescued


def test_the_time_that_attempts_ran_is_added_up_to_their_leases_ends_at_most(database: Database) -> None:
    job_id = add_job(database, "running")
    with database.session_across_teams() as session:
        times = "started_at = clock_timestamp() - interval '100 s', expires_at = clock_timestamp() - interval '40 s'"
        session.execute(text(f"UPDATE leases SET {times}"))
        attempts.requeue(session, job_id, 1, "The worker is shutting down")
    assert job_of(database, job_id).ran_seconds == pytest.approx(60, abs=1)

    with database.session_across_teams() as session:
        attempts.start(session, job_id, 2, "worker-2")
        session.execute(text("UPDATE leases SET started_at = clock_timestamp() - interval '10 s'"))
        attempts.fail(session, job_id, 2, "out_of_memory", "Memory ran out.")
    assert job_of(database, job_id).ran_seconds == pytest.approx(70, abs=2)


def test_the_default_is_that_of_the_settings() -> None:
    assert StorageSettings.model_fields["lease_seconds"].default == leases.SECONDS
