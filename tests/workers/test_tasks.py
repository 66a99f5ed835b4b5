from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import attempts
from storage.artifacts import ArtifactStore
from storage.database import Database
from tests.installation import PAIRS, Installation
from tests.processes import pids_with, until
from tests.proxies import PostgresProxy, running
from tests.storage.rows import add_job, events_of, job_of
from tests.workers import stub_trainings
from tests.workers.following import long_job, meanwhile, messages_of, status_of, until_training
from workers import exit_codes, tasks
from workers.stopping import StopRequest
from workers.watch import Ending, Reason


def published(installation: Installation) -> list[str]:
    """Everything in the artifact store but the uploaded files."""
    root = installation.settings.artifacts_dir
    return [path.name for folder in ("models", "unfinished") for path in (root / folder).iterdir()]


# --- training ---


def test_a_job_that_is_delivered_twice_trains_once(installation: Installation) -> None:
    job = installation.create_job(installation.upload(PAIRS))

    # Whichever message comes first starts what is queued; the others find nothing.
    for name, attempt in [("ftjob-unknown", 1), (job.id, 1), (job.id, 1), (job.id, 2), (job.id, 0)]:
        tasks.train(name, attempt)

    assert status_of(installation, job.id) == "succeeded"
    assert messages_of(installation, job.id).count("Training started") == 1
    assert published(installation) == [f"{job.id}-1"]


def test_a_training_that_is_killed_is_counted_as_a_crash_and_queued_again(installation: Installation) -> None:
    job = long_job(installation)

    def kill() -> None:
        until_training(installation, job.id)
        [training] = pids_with(job.id)
        os.kill(training, signal.SIGKILL)

    with meanwhile(kill):
        tasks.train(job.id, 1)

    again = installation.openai.fine_tuning.jobs.retrieve(job.id)
    assert (again.status, again.attempt) == ("queued", 2)
    said = messages_of(installation, job.id)[-1]
    assert re.search(r"killed by SIGKILL .* after step \d+; the job is queued again", said)
    assert interruptions(installation, job.id) == {"crashes": 1, "out_of_memory": 0, "preemptions": 0}
    assert published(installation) == []
    # Another worker is to hear of it at once, without the reconciler's help.
    assert installation.service.redis.lindex("rq:queue:gpu", -1).startswith(f"train-{job.id}-2-".encode())


def test_a_training_stops_soon_after_it_is_cancelled_and_publishes_nothing(installation: Installation) -> None:
    job = long_job(installation)

    def cancel() -> None:
        until_training(installation, job.id)
        installation.openai.fine_tuning.jobs.cancel(job.id)

    with meanwhile(cancel):
        tasks.train(job.id, 1)

    assert status_of(installation, job.id) == "cancelled"
    assert messages_of(installation, job.id)[-1] == "Job cancelled"
    assert pids_with(job.id) == []
    assert published(installation) == []
    steps = installation.request("GET", f"/v1/fine_tuning/jobs/{job.id}/metrics").json()["summary"]["steps"]
    assert 0 < steps < 2000


def test_a_training_that_is_paused_keeps_its_last_step_and_leaves_until_it_is_resumed_or_cancelled(
    installation: Installation,
) -> None:
    job = long_job(installation)
    client = installation.openai.fine_tuning.jobs

    def pause() -> None:
        until_training(installation, job.id)
        assert client.pause(job.id).status == "running"

    with meanwhile(pause):
        tasks.train(job.id, 1)

    assert status_of(installation, job.id) == "paused"
    assert pids_with(job.id) == []
    [kept] = client.checkpoints.list(job.id)
    progress = installation.request("GET", f"/v1/fine_tuning/jobs/{job.id}").json()["progress"]
    assert progress["step"] == kept.step_number
    steps = installation.request("GET", f"/v1/fine_tuning/jobs/{job.id}/metrics").json()["summary"]["steps"]
    assert steps == kept.step_number
    assert (client.resume(job.id).status, client.retrieve(job.id).attempt) == ("queued", 2)
    assert client.pause(job.id).status == "paused"

    assert client.cancel(job.id).status == "cancelled"
    assert list(client.checkpoints.list(job.id)) == []


def test_sigterm_between_lease_and_training_gives_the_job_back(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = installation.create_job(installation.upload(PAIRS))
    start_training = tasks._start_training

    def after_a_signal(*arguments: Any) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return start_training(*arguments)

    monkeypatch.setattr(tasks, "_start_training", after_a_signal)
    before = signal.getsignal(signal.SIGTERM)
    tasks.train(job.id, 1)

    again = installation.openai.fine_tuning.jobs.retrieve(job.id)
    assert (again.status, again.attempt) == ("queued", 2)
    assert interruptions(installation, job.id) == {"crashes": 0, "out_of_memory": 0, "preemptions": 1}
    assert signal.getsignal(signal.SIGTERM) == before


# --- around a training, whatever it does ---


def test_a_job_that_is_cancelled_ends_a_training_that_does_not_listen(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_start_training", stub_trainings.start(stub_trainings.DEAF))
    job = installation.create_job(installation.upload(PAIRS))

    def cancel_twice() -> None:
        until(lambda: pids_with(job.id))
        for _ in range(2):
            assert installation.openai.fine_tuning.jobs.cancel(job.id).status == "cancelled"

    with meanwhile(cancel_twice):
        tasks.train(job.id, 1)

    assert pids_with(job.id) == []
    assert messages_of(installation, job.id)[-1] == "Job cancelled"


def test_a_job_that_is_paused_ends_a_training_that_does_not_listen_after_a_while(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.watch._SECONDS_TO_PAUSE", 0.5)
    monkeypatch.setattr(tasks, "_start_training", stub_trainings.start(stub_trainings.DEAF))
    job = installation.create_job(installation.upload(PAIRS))

    def pause() -> None:
        until(lambda: pids_with(job.id))
        installation.openai.fine_tuning.jobs.pause(job.id)

    with meanwhile(pause):
        tasks.train(job.id, 1)

    assert status_of(installation, job.id) == "paused"
    assert pids_with(job.id) == []
    assert interruptions(installation, job.id) == {"crashes": 0, "out_of_memory": 0, "preemptions": 0}


def test_a_job_that_runs_for_longer_than_it_may_is_stopped_by_its_worker_alone(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_start_training", stub_trainings.start(stub_trainings.DEAF))
    job = installation.create_job(installation.upload(PAIRS), extra_body={"max_runtime_seconds": 1})
    assert job.max_runtime_seconds == 1

    tasks.train(job.id, 1)

    failed = installation.openai.fine_tuning.jobs.retrieve(job.id)
    assert (failed.status, failed.error.code) == ("failed", "max_runtime_exceeded")
    assert pids_with(job.id) == []


def test_a_worker_that_is_cut_off_stops_its_training_before_its_lease_ends_and_gives_the_job_back_later(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = installation.create_job(installation.upload(PAIRS))
    monkeypatch.setattr(tasks, "_start_training", stub_trainings.start(stub_trainings.LEAVES))
    monkeypatch.setenv("LIKENESS_LEASE_SECONDS", "4")
    monkeypatch.setattr(tasks, "_ANSWER_SECONDS", 0.5)
    proxy = PostgresProxy(installation.settings.required_database_url)
    monkeypatch.setenv("DATABASE_URL", proxy.url)

    def cut_off() -> None:
        until(lambda: pids_with(job.id))
        proxy.fall_silent()
        until(lambda: not pids_with(job.id))
        assert attempts_expired(installation.database) == [], "it has stopped in time"
        assert status_of(installation, job.id) == "running"
        proxy.recover()

    with running(proxy), meanwhile(cut_off):
        tasks.train(job.id, 1)

    again = installation.openai.fine_tuning.jobs.retrieve(job.id)
    assert (again.status, again.attempt) == ("queued", 2)
    assert "could not renew its lease" in messages_of(installation, job.id)[-1]
    assert interruptions(installation, job.id) == {"crashes": 0, "out_of_memory": 0, "preemptions": 1}


def attempts_expired(database: Database) -> object:
    with database.session_across_teams() as session:
        return attempts.expired(session)


# A worker's child in a memory cgroup with little room, and a training that wants more than there is.
IN_A_SMALL_CGROUP = """
import os, sys
from pathlib import Path
from storage.processes import start_child
from workers import tasks

group, job_id = sys.argv[1:]
(Path(group) / "cgroup.procs").write_text(str(os.getpid()))
hog = "open('/proc/self/oom_score_adj', 'w').write('1000'); kept = [b'x' * 2**20 for _ in range(4000)]"
tasks._start_training = lambda *_: start_child([sys.executable, "-c", hog])
tasks.train(job_id, 1)
"""


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of 400 MiB, where one can be made."""
    root = Path("/sys/fs/cgroup")
    legacy = (root / "memory").is_dir()
    group = (root / "memory" if legacy else root) / f"likeness-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        limit = group / ("memory.limit_in_bytes" if legacy else "memory.max")
        if not limit.exists():
            pytest.skip("memory is not among the controllers of this cgroup")
        limit.write_text(str(400 * 2**20))
        yield group
    finally:
        group.rmdir()


def test_a_training_that_the_kernel_kills_for_lack_of_memory_is_reported_as_that(
    installation: Installation, small_cgroup: Path
) -> None:
    job = installation.create_job(installation.upload(PAIRS))

    subprocess.run([sys.executable, "-c", IN_A_SMALL_CGROUP, small_cgroup, job.id], check=True, timeout=120)

    assert "The kernel killed the training process for lack of memory" in messages_of(installation, job.id)[-1]
    assert interruptions(installation, job.id) == {"crashes": 0, "out_of_memory": 1, "preemptions": 0}
    assert status_of(installation, job.id) == "queued"


# --- validation ---


def test_a_deleted_file_is_not_validated(installation: Installation) -> None:
    file_id = installation.upload(PAIRS, validated=False)
    installation.openai.files.delete(file_id)

    tasks.validate_file(file_id)
    tasks.validate_file("file-unknown")

    assert installation.request("GET", f"/v1/files/{file_id}").status_code == 404


def test_a_file_that_is_validated_twice_keeps_its_verdict_and_queues_its_job_once(installation: Installation) -> None:
    file_id = installation.upload(PAIRS, validated=False)
    job = installation.create_job(file_id)
    assert job.status == "validating_files"

    for _ in range(2):
        tasks.validate_file(file_id)
    for _ in range(2):
        tasks.prepare(job.id)

    assert installation.openai.files.retrieve(file_id).status == "processed"
    again = installation.openai.fine_tuning.jobs.retrieve(job.id)
    assert (again.status, again.attempt) == ("queued", 1)


def test_an_unusable_file_fails_the_job_that_waited_for_it(installation: Installation) -> None:
    file_id = installation.upload(b'{"anchor": "only"}\n', validated=False)
    job = installation.create_job(file_id)

    tasks.validate_file(file_id)

    failed = installation.openai.fine_tuning.jobs.retrieve(job.id)
    assert failed.status == "failed"
    assert failed.error.code == "file_invalid"


def test_a_file_whose_bytes_are_gone_is_an_error_and_not_tried_for_ever(installation: Installation) -> None:
    file_id = installation.upload(PAIRS, validated=False)
    ArtifactStore(installation.settings.artifacts_dir).delete_file(file_id)

    tasks.validate_file(file_id)

    file = installation.openai.files.retrieve(file_id)
    assert file.status == "error"
    assert "upload it again" in file.status_details


# --- what the training process' end says about the job ---


@pytest.mark.parametrize(
    ("ending", "state", "crashes", "says"),
    [
        (Ending(exit_codes.INTERRUPTED, Reason.WORKER_STOPS), "queued", 0, "shutting down"),
        (Ending(exit_codes.INTERRUPTED, Reason.DATABASE_AWAY), "queued", 0, "could not renew its lease"),
        (Ending(exit_codes.INTERRUPTED, Reason.NONE), "queued", 0, "was interrupted"),
        (Ending(exit_codes.DATABASE_AWAY, Reason.NONE), "queued", 0, "PostgreSQL was away"),
        (Ending(-signal.SIGTERM, Reason.NONE), "queued", 0, "was interrupted"),
        (Ending(-signal.SIGKILL, Reason.AT_ONCE, killed=True), "queued", 0, "shutting down"),
        (Ending(-signal.SIGKILL, Reason.DATABASE_AWAY, killed=True), "queued", 0, "could not renew its lease"),
        (Ending(-signal.SIGSEGV, Reason.NONE), "queued", 1, "killed by SIGSEGV"),
        (Ending(-signal.SIGKILL, Reason.NONE, out_of_memory=True), "queued", 0, "for lack of memory"),
        (Ending(1, Reason.NONE), "failed", 0, "exit code 1"),
        (Ending(exit_codes.STALE, Reason.NONE), "running", 0, "Training started"),
        (Ending(-signal.SIGKILL, Reason.LEASE_LOST, killed=True), "running", 0, "Training started"),
    ],
)
def test_the_end_of_the_training_process_settles_the_job(
    database: Database, ending: Ending, state: str, crashes: int, says: str
) -> None:
    job_id = add_job(database, "running")

    settle(database, job_id, ending)

    job = job_of(database, job_id)
    assert (job.state, job.crashes) == (state, crashes)
    assert says in events_of(database, job_id)[-1].message


@pytest.mark.parametrize("code", [exit_codes.RECORDED, exit_codes.INTERRUPTED, -signal.SIGKILL, 1])
def test_a_job_that_has_ended_is_left_as_it_is(database: Database, code: int) -> None:
    job_id = add_job(database, "succeeded")

    settle(database, job_id, Ending(code, Reason.NONE))

    assert job_of(database, job_id).state == "succeeded"


def test_a_worker_that_is_to_stop_waits_for_a_database_that_is_away_for_a_moment_only() -> None:
    away = Database("postgresql://postgres@/postgres?host=/nonexistent", pool_size=1)
    stop = StopRequest()
    stop.soon.set()

    settle(away, "ftjob-1", Ending(exit_codes.INTERRUPTED, Reason.WORKER_STOPS), stop)


def settle(database: Database, job_id: str, ending: Ending, stop: StopRequest | None = None) -> None:
    tasks._settle(database, tasks._Attempt(job_id, 1), ending, stop or StopRequest(), after_step=None)


def interruptions(installation: Installation, job_id: str) -> object:
    return installation.request("GET", f"/v1/fine_tuning/jobs/{job_id}").json()["interruptions"]
