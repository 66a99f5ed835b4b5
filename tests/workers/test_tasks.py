from __future__ import annotations

import os
import signal

import pytest

from storage.artifacts import ArtifactStore
from storage.database import Database
from tests.installation import PAIRS, Installation
from tests.processes import pids_with
from tests.storage.rows import add_job, events_of, job_of
from tests.workers.following import long_job, meanwhile, messages_of, status_of, until_training
from workers import exit_codes, tasks


def published(installation: Installation) -> list[str]:
    """Everything in the artifact store but the uploaded files."""
    root = installation.settings.artifacts_dir
    return [path.name for folder in ("models", "unfinished") for path in (root / folder).iterdir()]


# --- training ---


def test_a_job_that_is_delivered_twice_trains_once(installation: Installation) -> None:
    job = installation.create_job(installation.upload(PAIRS))

    for _ in range(2):
        tasks.train(job.id, 1)

    assert status_of(installation, job.id) == "succeeded"
    assert messages_of(installation, job.id).count("Training started") == 1
    assert published(installation) == [f"{job.id}-1"]


@pytest.mark.parametrize(("name", "attempt"), [(None, 0), (None, 2), ("ftjob-unknown", 1)])
def test_an_old_or_strange_delivery_starts_nothing_but_what_is_queued(
    installation: Installation, name: str | None, attempt: int
) -> None:
    job = installation.create_job(installation.upload(PAIRS))

    for _ in range(2):
        tasks.train(name or job.id, attempt)

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
    assert "killed by SIGKILL; the job is queued again" in messages_of(installation, job.id)[-1]
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

    def after_a_signal(job_id: str, attempt: int) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return start_training(job_id, attempt)

    monkeypatch.setattr(tasks, "_start_training", after_a_signal)
    before = signal.getsignal(signal.SIGTERM)
    tasks.train(job.id, 1)

    again = installation.openai.fine_tuning.jobs.retrieve(job.id)
    assert (again.status, again.attempt) == ("queued", 2)
    assert signal.getsignal(signal.SIGTERM) == before


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
    ("code", "state", "crashes", "says"),
    [
        (exit_codes.INTERRUPTED, "queued", 0, "shutting down"),
        (exit_codes.DATABASE_AWAY, "queued", 0, "PostgreSQL was away"),
        (-signal.SIGTERM, "queued", 0, "shutting down"),
        (-signal.SIGSEGV, "queued", 1, "killed by SIGSEGV"),
        (1, "failed", 0, "exit code 1"),
        (exit_codes.STALE, "running", 0, "Training started"),
    ],
)
def test_the_end_of_the_training_process_settles_the_job(
    database: Database, code: int, state: str, crashes: int, says: str
) -> None:
    job_id = add_job(database, "running")

    tasks._settle(database, job_id, 1, code, stopping=False)

    job = job_of(database, job_id)
    assert (job.state, job.crashes) == (state, crashes)
    assert says in events_of(database, job_id)[-1].message


@pytest.mark.parametrize("code", [exit_codes.RECORDED, exit_codes.INTERRUPTED, -signal.SIGKILL, 1])
def test_a_job_that_has_ended_is_left_as_it_is(database: Database, code: int) -> None:
    job_id = add_job(database, "succeeded")

    tasks._settle(database, job_id, 1, code, stopping=False)

    assert job_of(database, job_id).state == "succeeded"
