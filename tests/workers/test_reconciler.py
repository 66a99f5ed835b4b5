from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import text

from storage import files, queue, uploads
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.leadership import Leadership
from tests.processes import until
from tests.storage.rows import add_file, add_job, add_upload, end_time_of, expire_lease, job_of
from workers.reconciler import Reconciler, run


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with queue.connect(redis_url) as connection:
        yield connection


@pytest.fixture
def reconciler(database: Database, redis: Redis, tmp_path: Path) -> Reconciler:
    return Reconciler(database, redis, ArtifactStore(tmp_path))


def test_derived_data_is_kept_within_its_bounds(database: Database, redis: Redis, tmp_path: Path) -> None:
    derived = tmp_path / "derived"
    for age, name in enumerate(["new", "old"]):
        (derived / name).mkdir(parents=True)
        (derived / name / "manifest.json").write_bytes(b"x" * 600)
        os.utime(derived / name / "manifest.json", (10**9 - age, 10**9 - age))

    Reconciler(database, redis, ArtifactStore(tmp_path), derived=(derived, 1000)).tick()

    assert [path.name for path in derived.iterdir()] == ["new"]


def waiting(redis: Redis, name: str) -> list[str]:
    """What the messages in a queue are about, next first."""
    return [message_id.decode().rpartition("-")[0] for message_id in redis.lrange(f"rq:queue:{name}", 0, -1)]


def test_what_waits_in_the_outbox_is_dispatched(database: Database, redis: Redis, reconciler: Reconciler) -> None:
    job_id = add_job(database)

    reconciler.tick()

    assert waiting(redis, "gpu") == [f"train-{job_id}-1"]


def test_what_an_emptied_valkey_lost_is_enqueued_again(
    database: Database, redis: Redis, reconciler: Reconciler
) -> None:
    job_id, file_id = add_job(database), add_file(database, verdict=None)
    queue.dispatch(database, redis)
    redis.flushdb()

    reconciler.tick()

    assert waiting(redis, "gpu") == [f"train-{job_id}-1"]
    assert waiting(redis, "cpu") == [f"validate_file-{file_id}"]


def test_what_is_in_the_queue_is_not_enqueued_twice(database: Database, redis: Redis, reconciler: Reconciler) -> None:
    job_id = add_job(database)

    for _ in range(3):
        reconciler.tick()

    assert waiting(redis, "gpu") == [f"train-{job_id}-1"]


@pytest.mark.parametrize("state", ["validating_files", "running", "paused", "succeeded", "failed", "cancelled"])
def test_a_job_that_is_not_queued_is_not_enqueued(
    database: Database, redis: Redis, reconciler: Reconciler, state: str
) -> None:
    add_job(database, state)
    queue.dispatch(database, redis)
    redis.flushdb()

    reconciler.tick()

    assert waiting(redis, "gpu") == []


def test_a_job_whose_lease_has_ended_is_queued_again_in_one_tick(
    database: Database, redis: Redis, reconciler: Reconciler
) -> None:
    job_id = add_job(database, "running")
    expire_lease(database, job_id)

    reconciler.tick()

    assert job_of(database, job_id).state == "queued"
    assert waiting(redis, "gpu")[-1] == f"train-{job_id}-2"


def test_leftovers_of_crashed_writers_are_removed(
    database: Database, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconciler = Reconciler(database, redis, ArtifactStore(tmp_path))
    (tmp_path / "unfinished" / "half").touch()
    monkeypatch.setattr("time.time", lambda: 1e12)

    reconciler.tick()

    assert not list((tmp_path / "unfinished").iterdir())


def test_parts_of_uploads_that_have_ended_are_removed(database: Database, redis: Redis, tmp_path: Path) -> None:
    names = {name: add_upload(database, 10) for name in ("pending", "expired", "cancelled")}
    for upload_id in [*names.values(), "upload-unknown"]:
        (tmp_path / "parts" / upload_id).mkdir(parents=True)
        (tmp_path / "parts" / upload_id / "00").write_bytes(b"x" * 10)
    end_time_of(database, names["expired"])
    with database.session_across_teams() as session:
        uploads.cancel(session, names["cancelled"])

    Reconciler(database, redis, ArtifactStore(tmp_path)).tick()

    assert [path.name for path in (tmp_path / "parts").iterdir()] == [names["pending"]]
    with database.session_across_teams() as session:
        assert uploads.get(session, names["expired"]).status == "expired"


def test_checkpoints_of_jobs_that_have_ended_are_removed(database: Database, redis: Redis, tmp_path: Path) -> None:
    names = {state: add_job(database, state) for state in ("queued", "running", "paused", "succeeded", "cancelled")}
    for job_id in [*names.values(), "ftjob-unknown"]:
        (tmp_path / "checkpoints" / job_id / "3").mkdir(parents=True)
    (tmp_path / "unfinished" / f"checkpoint-{names['succeeded']}-4-00").mkdir(parents=True)

    Reconciler(database, redis, ArtifactStore(tmp_path)).tick()

    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {names[state] for state in ("queued", "running", "paused")}
    assert not list((tmp_path / "unfinished").iterdir())


def test_old_bytes_without_a_row_are_removed(database: Database, redis: Redis, tmp_path: Path) -> None:
    reconciler = Reconciler(database, redis, ArtifactStore(tmp_path))
    known, deleted = add_file(database), add_file(database)
    with database.session_across_teams() as session:
        files.delete(session, deleted)
    for name in (known, deleted, "file-orphan", "file-fresh"):
        (tmp_path / "files" / name).touch()
        if name != "file-fresh":
            os.utime(tmp_path / "files" / name, (0, 0))

    reconciler.tick()

    assert {path.name for path in (tmp_path / "files").iterdir()} == {known, "file-fresh"}


class Candidate:
    """A reconciler in a thread of its own, and how often it has mended."""

    def __init__(self, reconciler: Reconciler, database: Database) -> None:
        self.ticks = 0
        self.stop = threading.Event()
        self._tick = reconciler.tick
        reconciler.tick = self._count  # type: ignore[method-assign]
        self.thread = threading.Thread(target=run, args=(reconciler, Leadership(database), self.stop))
        self.thread.start()

    def _count(self) -> None:
        self._tick()
        self.ticks += 1

    def end(self) -> None:
        self.stop.set()
        self.thread.join()


@pytest.fixture
def two(
    database: Database, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Candidate, Candidate]]:
    """Two reconcilers that tick fast."""
    monkeypatch.setattr("workers.reconciler.TICK_SECONDS", 0.02)
    store = ArtifactStore(tmp_path)
    candidates = (
        Candidate(Reconciler(database, redis, store), database),
        Candidate(Reconciler(database, redis, store), database),
    )
    yield candidates
    for candidate in candidates:
        candidate.end()


def test_one_of_two_mends_and_the_other_follows_when_it_stops(two: tuple[Candidate, Candidate]) -> None:
    until(lambda: max(candidate.ticks for candidate in two) > 10)
    leader, other = sorted(two, key=lambda candidate: -candidate.ticks)
    assert other.ticks == 0

    leader.end()

    until(lambda: other.ticks > 3)


def test_somebody_leads_again_after_the_leaders_connection_was_ended(
    database: Database, two: tuple[Candidate, Candidate]
) -> None:
    until(lambda: sum(candidate.ticks for candidate in two) > 3)
    with database.session_across_teams() as session:
        ended = session.scalars(
            text(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory' AND granted "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        ).all()
    assert ended == [True]

    before = sum(candidate.ticks for candidate in two)
    until(lambda: sum(candidate.ticks for candidate in two) > before + 3)
    assert all(candidate.thread.is_alive() for candidate in two)


def test_a_valkey_that_is_away_is_waited_for(
    database: Database, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.reconciler.TICK_SECONDS", 0.02)
    job_id = add_job(database, "running")
    expire_lease(database, job_id)
    away = queue.connect(f"unix://{tmp_path}/nobody.sock")
    candidate = Candidate(Reconciler(database, away, ArtifactStore(tmp_path)), database)

    until(lambda: job_of(database, job_id).state == "queued")  # needs PostgreSQL only
    assert candidate.thread.is_alive()
    candidate.end()
    assert candidate.ticks == 0
