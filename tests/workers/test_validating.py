"""Validation that takes long, is stopped, or dies: seen from outside, with real workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from storage import jobs, queue
from storage.artifacts import ArtifactStore
from storage.tables import File
from tests.installation import PAIRS, Installation
from tests.processes import await_end, descendants, runs, until
from tests.workers.test_tasks import meanwhile
from workers import tasks, validating
from workers.dataset_files import DatasetFiles
from workers.reconciler import Reconciler


@pytest.fixture
def reconciler(installation: Installation) -> Iterator[Reconciler]:
    with queue.connect(installation.settings.required_redis_url) as redis:
        yield Reconciler(installation.database, redis, ArtifactStore(installation.settings.artifacts_dir))


class Pipe:
    """In a file's place: its reader waits for what the test sends."""

    def __init__(self, path: Path) -> None:
        path.unlink()
        os.mkfifo(path)
        # Open for reading too, so that a reader that dies is no end of the pipe.
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def send(self) -> None:
        """Send rows, or nothing while the pipe is full: who reads asks for more at a time than it holds."""
        with suppress(BlockingIOError):
            os.write(self._descriptor, 25 * "".join(json.dumps(row) + "\n" for row in PAIRS).encode())

    def close(self) -> None:
        """End the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def pipe_for(installation: Installation, file_id: str) -> Iterator[Pipe]:
    pipe = Pipe(ArtifactStore(installation.settings.artifacts_dir).file(file_id))
    try:
        yield pipe
    finally:
        pipe.close()


def file_of(installation: Installation, file_id: str) -> dict[str, Any]:
    return installation.request("GET", f"/v1/files/{file_id}").json()


def beginnings(installation: Installation, file_id: str) -> int:
    with installation.database.session_across_teams() as session:
        return session.get_one(File, file_id).validations_begun


def scratch(installation: Installation) -> list[Path]:
    return list((installation.settings.artifacts_dir / "unfinished").iterdir())


def test_a_file_that_kills_its_reader_three_times_ends_in_an_error_with_its_jobs(
    installation: Installation, reconciler: Reconciler
) -> None:
    file_id = installation.upload(PAIRS, validated=False)
    job = installation.create_job(file_id, prepared=False)

    def begun(times: int) -> bool:
        reconciler.tick()
        return beginnings(installation, file_id) == times

    with pipe_for(installation, file_id), installation.worker("cpu") as worker:
        for times in (1, 2, 3):
            until(lambda times=times: begun(times))  # type: ignore[misc]
            [reader] = descendants(worker)
            os.kill(reader, signal.SIGKILL)
            await_end(reader)
        until(lambda: reconciler.tick() or file_of(installation, file_id)["status"] == "error")

    file = file_of(installation, file_id)
    assert "killed the worker 3 times" in file["status_details"]
    assert "JSON Lines" in file["status_details"]
    failed = installation.openai.fine_tuning.jobs.retrieve(job.id)
    assert (failed.status, failed.error.code) == ("failed", "file_invalid")
    assert "killed the worker 3 times" in failed.error.message
    assert "killed the worker" in installation.request("GET", f"/v1/files/{file_id}/report").json()["error"]["message"]
    assert scratch(installation) == []


def test_a_worker_that_is_shut_down_gives_the_file_back_and_the_next_one_takes_it_up(
    installation: Installation, reconciler: Reconciler
) -> None:
    file_id = installation.upload(PAIRS, validated=False)

    with pipe_for(installation, file_id) as pipe, installation.worker("cpu") as worker:
        until(lambda: beginnings(installation, file_id) == 1)
        family = [worker, *descendants(worker)]
        os.kill(worker, signal.SIGTERM)
        until(lambda: pipe.send() or not any(map(runs, family)))

    assert beginnings(installation, file_id) == 0
    file = file_of(installation, file_id)
    assert (file["status"], file["validation"]) == ("uploaded", None)
    path = ArtifactStore(installation.settings.artifacts_dir).file(file_id)
    path.unlink()
    path.write_text("\n".join(map(json.dumps, PAIRS)))
    with installation.worker("cpu"):
        until(lambda: reconciler.tick() or file_of(installation, file_id)["status"] == "processed")


def test_progress_is_seen_and_deletion_stops_the_reading(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validating, "_LOOK_EVERY_SECONDS", 0.0)
    file_id = installation.upload(PAIRS, validated=False)
    size = file_of(installation, file_id)["bytes"]
    assert file_of(installation, file_id)["validation"] is None

    with pipe_for(installation, file_id) as pipe:

        def bytes_read() -> int:
            pipe.send()
            validation = file_of(installation, file_id)["validation"]
            assert validation is None or validation["bytes"] == size
            return validation["bytes_read"] if validation else 0

        def delete() -> None:
            until(bytes_read)
            installation.openai.files.delete(file_id)
            until(lambda: pipe.send() or scratch(installation) == [])

        with meanwhile(delete):
            tasks.validate_file(file_id)

    with installation.database.session_across_teams() as session:
        row = session.get_one(File, file_id)
        assert (row.status, row.report) == ("uploaded", None)
    assert scratch(installation) == []


def test_a_second_delivery_while_the_first_reads_does_nothing(installation: Installation) -> None:
    file_id = installation.upload(PAIRS, validated=False)

    with pipe_for(installation, file_id) as pipe, installation.worker("cpu"):
        until(lambda: beginnings(installation, file_id) == 1)
        tasks.validate_file(file_id)
        assert beginnings(installation, file_id) == 1
        assert file_of(installation, file_id)["status"] == "uploaded"
        pipe.send()
        pipe.close()
        until(lambda: file_of(installation, file_id)["status"] == "processed")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "more memory than the worker has"),
        (OSError(28, "No space left on device"), "Free space, then upload the file again"),
        (ZeroDivisionError("division by zero"), "(ZeroDivisionError). This is a defect of the service"),
    ],
)
def test_an_error_that_was_not_expected_ends_the_file_with_a_reason(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    file_id = installation.upload(PAIRS, validated=False)
    monkeypatch.setattr(validating, "inspect", fail)
    tasks.validate_file(file_id)

    file = file_of(installation, file_id)
    assert file["status"] == "error"
    assert words in file["status_details"]


def test_bytes_that_cannot_be_read_end_the_file_with_a_reason(installation: Installation) -> None:
    file_id = installation.upload(PAIRS, validated=False)
    path = ArtifactStore(installation.settings.artifacts_dir).file(file_id)
    path.unlink()
    path.mkdir()

    tasks.validate_file(file_id)

    assert "Reading it failed (Is a directory)" in file_of(installation, file_id)["status_details"]


def test_temporary_files_that_find_no_room_are_told(installation: Installation) -> None:
    rows = [{"anchor": f"the word {number}", "positive": f"{number} said again"} for number in range(500)]
    file_id = installation.upload(rows, validated=False)
    # Files may not grow beyond 4096 bytes, which the system tells as it tells a full disk.
    program = (
        "import resource, sys; from workers import tasks; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); tasks.validate_file(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", program, file_id], check=True, capture_output=True)

    file = file_of(installation, file_id)
    assert file["status"] == "error"
    assert "disk of the data directory was full" in file["status_details"]


# --- preparation ---


def test_a_preparation_whose_worker_is_shut_down_is_given_back(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = installation.create_job(installation.upload(PAIRS), prepared=False)
    verified = DatasetFiles.verified

    def after_a_signal(files: DatasetFiles, file_id: str) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return verified(files, file_id)

    with monkeypatch.context() as patched:
        patched.setattr(DatasetFiles, "verified", after_a_signal)
        tasks.prepare(job.id)
    assert installation.openai.fine_tuning.jobs.retrieve(job.id).status == "validating_files"

    for _ in range(3):  # none of which counts
        with monkeypatch.context() as patched:
            patched.setattr(DatasetFiles, "verified", after_a_signal)
            tasks.prepare(job.id)
    assert installation.prepare(job).status == "queued"


def test_a_preparation_that_kills_its_worker_three_times_fails_the_job(
    installation: Installation, reconciler: Reconciler
) -> None:
    file_id = installation.upload(PAIRS)
    job = installation.create_job(file_id, prepared=False)

    with pipe_for(installation, file_id), installation.worker("cpu") as worker:
        for times in (1, 2, 3):
            reader = until(lambda times=times: _preparing(installation, reconciler, job.id, worker, times))  # type: ignore[misc]
            os.kill(reader, signal.SIGKILL)
            await_end(reader)
        until(lambda: reconciler.tick() or installation.openai.fine_tuning.jobs.retrieve(job.id).status == "failed")

    failed = installation.openai.fine_tuning.jobs.retrieve(job.id)
    assert failed.error.code == "worker_lost"
    assert "ended 3 times without a result" in failed.error.message


def _preparing(installation: Installation, reconciler: Reconciler, job_id: str, worker: int, times: int) -> int:
    """The process that prepares the job for the n-th time, 0 as long as there is none."""
    reconciler.tick()
    with installation.database.session_across_teams() as session:
        begun = jobs.get(session, job_id).preparations_begun
    return descendants(worker)[0] if begun == times else 0


def test_an_error_that_was_not_expected_fails_the_job_at_once(installation: Installation) -> None:
    job = installation.create_job(installation.upload(PAIRS), prepared=False)
    installation.settings.derived_dir.write_text("no folder")

    failed = installation.prepare(job)

    assert (failed.status, failed.error.code) == ("failed", "preparation_crashed")
    assert "please report it" in failed.error.message
