from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import text

from service.settings import ServiceSettings
from storage import files, queue, uploads
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.leadership import Leadership
from storage.processes import start_child, stop_child
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

    Reconciler(database, redis, ArtifactStore(tmp_path), derived=(derived, 1000)).sweep()

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


def test_a_job_past_its_deadline_is_ended_in_one_tick_whatever_it_waits_for(
    database: Database, reconciler: Reconciler
) -> None:
    job_id = add_job(database, deadline=2**33)
    with database.session_across_teams() as session:
        session.execute(text("UPDATE jobs SET deadline_at = clock_timestamp()"))

    reconciler.tick()

    job = job_of(database, job_id)
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("failed", "deadline_exceeded")


def test_a_job_that_cannot_be_mended_keeps_no_other_waiting(database: Database, reconciler: Reconciler) -> None:
    broken, whole = add_job(database, "running"), add_job(database, "running")
    for job_id in (broken, whole):
        expire_lease(database, job_id)
    with database.session_across_teams() as session:
        # Nothing of ours writes this; somebody else's hand may.
        session.execute(text("UPDATE jobs SET progress = '[1, 2]' WHERE id = :id"), {"id": broken})

    for _ in range(2):
        reconciler.tick()

    assert [job_of(database, job_id).state for job_id in (broken, whole)] == ["running", "queued"]


def test_a_stale_word_in_valkey_changes_nothing_of_a_job_that_has_ended(
    database: Database, redis: Redis, reconciler: Reconciler
) -> None:
    job_id = add_job(database, "succeeded")
    reconciler.tick()
    before = redis.llen("rq:queue:gpu")
    for key in redis.keys(f"rq:job:train-{job_id}*"):
        redis.hset(key, "status", "started")

    reconciler.tick()

    assert job_of(database, job_id).state == "succeeded"
    assert redis.llen("rq:queue:gpu") == before


def test_a_message_that_was_lost_on_its_way_is_put_in_again_although_valkey_says_that_it_is_worked_on(
    database: Database, redis: Redis, reconciler: Reconciler
) -> None:
    job_id = add_job(database)
    reconciler.tick()
    [message] = redis.lrange("rq:queue:gpu", 0, -1)
    redis.lmove("rq:queue:gpu", "rq:queue:gpu:intermediate")  # by a worker that died before it said so
    redis.hset(b"rq:job:" + message, mapping={"status": "started", "last_heartbeat": "9999-01-01T00:00:00.000000Z"})

    reconciler.tick()

    assert waiting(redis, "gpu") == [f"train-{job_id}-1"]


def test_a_message_whose_record_was_evicted_is_put_in_again_once_it_was_taken(
    database: Database, redis: Redis, reconciler: Reconciler
) -> None:
    job_id = add_job(database)
    reconciler.tick()
    [message] = redis.lrange("rq:queue:gpu", 0, -1)
    redis.delete(b"rq:job:" + message)
    redis.lpop("rq:queue:gpu")  # by a worker, which finds nothing to do

    reconciler.tick()

    assert waiting(redis, "gpu") == [f"train-{job_id}-1"]


def test_leftovers_of_crashed_writers_are_removed(
    database: Database, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconciler = Reconciler(database, redis, ArtifactStore(tmp_path))
    (tmp_path / "unfinished" / "half").touch()
    monkeypatch.setattr("time.time", lambda: 1e12)

    reconciler.sweep()

    assert not list((tmp_path / "unfinished").iterdir())


def test_parts_of_uploads_that_have_ended_are_removed(database: Database, redis: Redis, tmp_path: Path) -> None:
    names = {name: add_upload(database, 10) for name in ("pending", "expired", "cancelled")}
    for upload_id in [*names.values(), "upload-unknown"]:
        (tmp_path / "parts" / upload_id).mkdir(parents=True)
        (tmp_path / "parts" / upload_id / "00").write_bytes(b"x" * 10)
    end_time_of(database, names["expired"])
    with database.session_across_teams() as session:
        uploads.cancel(session, names["cancelled"])

    Reconciler(database, redis, ArtifactStore(tmp_path)).sweep()

    assert [path.name for path in (tmp_path / "parts").iterdir()] == [names["pending"]]
    with database.session_across_teams() as session:
        assert uploads.get(session, names["expired"]).status == "expired"


def test_checkpoints_of_jobs_that_have_ended_are_removed(database: Database, redis: Redis, tmp_path: Path) -> None:
    names = {state: add_job(database, state) for state in ("queued", "running", "paused", "succeeded", "cancelled")}
    for job_id in [*names.values(), "ftjob-unknown"]:
        (tmp_path / "checkpoints" / job_id / "3").mkdir(parents=True)
    (tmp_path / "unfinished" / f"checkpoint-{names['succeeded']}-4-00").mkdir(parents=True)

    Reconciler(database, redis, ArtifactStore(tmp_path)).sweep()

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

    reconciler.sweep()

    assert {path.name for path in (tmp_path / "files").iterdir()} == {known, "file-fresh"}


def test_folders_of_models_that_were_never_made_are_removed(database: Database, redis: Redis, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    job_id = add_job(database, "failed")
    with store.publishing_model(f"{job_id}-1") as folder:
        (folder / "model.safetensors").touch()

    Reconciler(database, redis, store).sweep()

    assert store.models() == []


def test_a_database_that_was_made_anew_removes_nothing_of_the_old_ones(
    database: Database, redis: Redis, tmp_path: Path
) -> None:
    Reconciler(database, redis, ArtifactStore(tmp_path)).sweep()
    with database.session_across_teams() as session:
        session.execute(text("UPDATE teams SET created_at = clock_timestamp()"))
    (tmp_path / "files" / "file-of-the-old-one").touch()
    os.utime(tmp_path / "files" / "file-of-the-old-one", (0, 0))
    (tmp_path / "checkpoints" / "ftjob-of-the-old-one").mkdir()
    job_id = add_job(database)

    reconciler = Reconciler(database, redis, ArtifactStore(tmp_path))
    reconciler.tick()
    reconciler.sweep()

    assert waiting(redis, "gpu") == [f"train-{job_id}-1"]
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["file-of-the-old-one"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["ftjob-of-the-old-one"]


class Candidate:
    """A reconciler in a thread of its own, and how often it has mended."""

    def __init__(self, reconciler: Reconciler, database: Database) -> None:
        self.ticks = 0
        self.stop = threading.Event()
        self._tick = reconciler.tick
        reconciler.tick = self._count  # type: ignore[method-assign]
        arguments = (reconciler, Leadership(database), self.stop)
        self.thread = threading.Thread(target=run, args=arguments, kwargs={"tick_seconds": 0.02})
        self.thread.start()

    def _count(self) -> None:
        self._tick()
        self.ticks += 1

    def end(self) -> None:
        self.stop.set()
        self.thread.join()


@pytest.fixture
def two(database: Database, redis: Redis, tmp_path: Path) -> Iterator[tuple[Candidate, Candidate]]:
    """Two reconcilers that tick fast."""
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


def test_a_disk_that_fails_keeps_no_job_from_being_rescued(
    database: Database, reconciler: Reconciler, tmp_path: Path
) -> None:
    (tmp_path / "unfinished").rmdir()  # what can't be listed
    candidate = Candidate(reconciler, database)
    until(lambda: candidate.ticks > 1)  # the first of them with a look at the disk

    job_id = add_job(database, "running")
    expire_lease(database, job_id)

    until(lambda: job_of(database, job_id).state == "queued")
    candidate.end()


def test_a_valkey_that_is_away_is_waited_for(database: Database, tmp_path: Path) -> None:
    job_id = add_job(database, "running")
    expire_lease(database, job_id)
    away = queue.connect(f"unix://{tmp_path}/nobody.sock")
    candidate = Candidate(Reconciler(database, away, ArtifactStore(tmp_path)), database)

    until(lambda: job_of(database, job_id).state == "queued")  # needs PostgreSQL only
    assert candidate.thread.is_alive()
    candidate.end()
    assert candidate.ticks == 0


# A process of its own, which can be stopped; its terms are short, so that the test is.
RECONCILER = """
import sys
from storage import leadership
from workers import reconciler
leadership.TERM_SECONDS = 0.5
sys.exit(reconciler.main())
"""


def test_a_leader_that_is_frozen_is_followed_by_another_and_does_no_harm_when_it_thaws(
    settings: ServiceSettings, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKENESS_TICK_SECONDS", "0.1")
    monkeypatch.setattr("storage.leadership.TERM_SECONDS", 0.5)
    frozen = start_child([sys.executable, "-c", RECONCILER])
    try:
        until(lambda: terms(database) == [1])
        frozen.send_signal(signal.SIGSTOP)
        other = Candidate(Reconciler(database, redis, ArtifactStore(settings.artifacts_dir)), database)
        until(lambda: other.ticks > 3)
        assert terms(database) == [1, 2]

        frozen.send_signal(signal.SIGCONT)
        before = other.ticks
        until(lambda: other.ticks > before + 10)
        assert frozen.poll() is None
        assert terms(database) == [1, 2]
        other.end()
        until(lambda: terms(database) == [1, 2, 3])  # it leads again
    finally:
        frozen.send_signal(signal.SIGCONT)
        stop_child(frozen, sig=signal.SIGTERM, grace_seconds=30)


def terms(database: Database) -> list[int]:
    with database.session_across_teams() as session:
        return list(session.scalars(text("SELECT term FROM leader_terms ORDER BY term")))
