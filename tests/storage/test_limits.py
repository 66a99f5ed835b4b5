from __future__ import annotations

import time

import pytest
from sqlalchemy import text

from api_schemas.errors import LikenessError
from api_schemas.jobs import ENDED, JobCreate
from storage import attempts, files, jobs, limits
from storage.database import Database
from storage.held_lease import HeldLease
from tests.storage.rows import TEAM, add_file, add_job, job_of, lease_of

UNENDED = ["validating_files", "queued", "running", "paused"]
FUTURE = int(time.time()) + 10_000


def end_overdue(database: Database) -> list[str]:
    """As the reconciler does."""
    with database.session_across_teams() as session:
        overdue = limits.overdue(session)
    ended = []
    for job_id in overdue:
        with database.session_across_teams() as session:
            if limits.end(session, job_id):
                ended.append(job_id)
    return ended


def pass_deadline(database: Database) -> None:
    with database.session_across_teams() as session:
        session.execute(
            text("UPDATE jobs SET deadline_at = clock_timestamp() - interval '1 s' WHERE deadline_at > now()")
        )


def run_for(database: Database, seconds: float) -> None:
    with database.session_across_teams() as session:
        session.execute(text(f"UPDATE leases SET started_at = clock_timestamp() - interval '{seconds} s'"))


@pytest.mark.parametrize("state", UNENDED)
def test_a_job_whose_deadline_passes_fails_in_whatever_state_it_is(database: Database, state: str) -> None:
    job_id = add_job(database, state, deadline=FUTURE)
    assert end_overdue(database) == []

    pass_deadline(database)

    assert end_overdue(database) == [job_id]
    job = job_of(database, job_id)
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", "deadline_exceeded")
    assert state in job.error["message"]
    assert lease_of(database, job_id) is None
    assert end_overdue(database) == []


@pytest.mark.parametrize("state", sorted(ENDED))
def test_a_job_that_has_ended_stays_as_it_is_when_its_deadline_passes(database: Database, state: str) -> None:
    job_id = add_job(database, state, deadline=FUTURE)
    pass_deadline(database)

    assert end_overdue(database) == []
    with database.session_across_teams() as session:
        assert not limits.end(session, job_id)
    assert job_of(database, job_id).state == state


def test_a_job_that_runs_for_longer_than_it_may_fails(database: Database) -> None:
    job_id = add_job(database, "running", max_runtime_seconds=60)
    run_for(database, 50)
    assert end_overdue(database) == []

    run_for(database, 70)

    assert end_overdue(database) == [job_id]
    job = job_of(database, job_id)
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", "max_runtime_exceeded")


def test_the_time_of_all_attempts_counts_and_waiting_does_not(database: Database) -> None:
    job_id = add_job(database, "running", max_runtime_seconds=60)
    run_for(database, 50)
    with database.session_across_teams() as session:
        attempts.requeue(session, job_id, 1, "The worker is shutting down")
        session.execute(text("UPDATE jobs SET created_at = clock_timestamp() - interval '1 d'"))
    assert end_overdue(database) == []
    with database.session_across_teams() as session:
        attempts.start(session, job_id, 2, "worker-2")
    assert end_overdue(database) == []

    run_for(database, 20)

    assert end_overdue(database) == [job_id]


@pytest.mark.parametrize("limit", [{"deadline": FUTURE}, {"max_runtime_seconds": 60}])
def test_its_worker_is_told_when_a_job_has_taken_longer_than_it_may(database: Database, limit: dict[str, int]) -> None:
    job_id = add_job(database, "running", **limit)
    lease = HeldLease(database, answer_seconds=1.0)
    lease.hold(job_id, 1, "worker-1")
    assert not lease.orders().overdue

    pass_deadline(database)
    run_for(database, 70)

    assert lease.orders().overdue
    lease.close()


@pytest.mark.parametrize("deadline", [1, int(time.time()) - 5])
def test_a_deadline_that_has_passed_is_refused(database: Database, deadline: int) -> None:
    request = JobCreate(model="tiny/bert", training_file=add_file(database), deadline=deadline)

    with database.session(TEAM) as session:
        training = files.get(session, request.training_file)
        with pytest.raises(LikenessError) as refusal:
            jobs.create(session, request, training, None, max_seq_length=48)

    assert (refusal.value.code, refusal.value.param) == ("out_of_range", "deadline")
    assert "s ago" in refusal.value.message
