from __future__ import annotations

import pytest

from storage import attempts, jobs
from storage.database import Database
from tests.storage.rows import TEAM, add_job, expire_lease, job_of
from workers import lease
from workers.lease import Lease, LeaseLostError


@pytest.fixture(autouse=True)
def _always_time_to_renew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_EVERY_SECONDS", 0.0)


def lease_of(database: Database, job_id: str) -> Lease:
    return Lease(database, job_id, 1, "worker-1")


def test_a_lease_that_is_kept_does_not_end(database: Database) -> None:
    job_id = add_job(database, "running")
    expire_lease(database, job_id)

    lease_of(database, job_id).keep()

    with database.session_across_teams() as session:
        assert attempts.rescue_expired(session) == 0


def test_a_lease_is_not_renewed_before_it_is_time_to(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_EVERY_SECONDS", 3600.0)
    job_id = add_job(database, "running")
    before = job_of(database, job_id).lease_expires_at

    lease_of(database, job_id).keep()

    assert job_of(database, job_id).lease_expires_at == before


def test_the_lease_of_a_cancelled_job_is_lost(database: Database) -> None:
    job_id = add_job(database, "running")
    held = lease_of(database, job_id)
    with database.session(TEAM) as session:
        jobs.cancel(session, job_id)

    with pytest.raises(LeaseLostError, match="cancelled"):
        held.keep()


def test_the_lease_of_a_job_that_was_given_to_another_is_lost(database: Database) -> None:
    job_id = add_job(database, "running")
    held = lease_of(database, job_id)
    expire_lease(database, job_id)
    with database.session_across_teams() as session:
        attempts.rescue_expired(session)
    with database.session_across_teams() as session:
        assert attempts.start(session, job_id, 2, "worker-2") is not None

    with pytest.raises(LeaseLostError):
        held.keep()
    assert job_of(database, job_id).worker_id == "worker-2"


def test_a_database_that_is_away_for_a_moment_costs_no_lease() -> None:
    away = Database("postgresql://postgres@/postgres?host=/nonexistent", pool_size=1)

    lease_of(away, "ftjob-1").keep()


def test_a_database_that_is_away_for_most_of_a_lease_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Database("postgresql://postgres@/postgres?host=/nonexistent", pool_size=1)
    held = lease_of(away, "ftjob-1")
    monkeypatch.setattr(lease.time, "monotonic", lambda: held._renewed + attempts.LEASE_SECONDS - 9)

    with pytest.raises(LeaseLostError, match="PostgreSQL"):
        held.keep()


def test_time_that_a_renewal_takes_counts_against_the_lease(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Database("postgresql://postgres@/postgres?host=/nonexistent", pool_size=1)
    held = lease_of(away, "ftjob-1")
    # Sent in time, and without an answer until it is not.
    moments = iter([held._renewed + 30, *[held._renewed + 44] * 100])
    monkeypatch.setattr(lease.time, "monotonic", lambda: next(moments))

    with pytest.raises(LeaseLostError):
        held.keep()
