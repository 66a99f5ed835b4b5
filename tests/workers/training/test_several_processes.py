"""A job whose training runs in two processes, through the real worker path."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.installation import PAIRS, Installation
from tests.processes import pids_with, until
from tests.workers.following import meanwhile, messages_of


@pytest.fixture(autouse=True)
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_TRAINING_PROCESSES", "2")


def pid_of_rank(job_id: str, rank: int) -> int:
    def found() -> list[int]:
        return [
            pid for pid in pids_with(job_id) if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        ]

    [pid] = until(found)
    return pid


def test_a_job_that_is_paused_and_then_loses_a_process_goes_on_to_its_end(installation: Installation) -> None:
    job = installation.create_job(
        installation.upload(PAIRS),
        max_steps=150,
        hyperparameters={"n_epochs": 1000, "batch_size": 4, "precision": "fp32"},
        checkpointing={"every_steps": 10},
    )
    client = installation.openai.fine_tuning.jobs

    def newest() -> int:
        return max((each.step_number for each in client.checkpoints.list(job.id)), default=0)

    def pause() -> None:
        until(newest)
        client.pause(job.id)

    with meanwhile(pause):
        assert installation.train(job).status == "paused"
    assert pids_with(job.id) == []
    kept = newest()
    assert kept < 150
    progress = installation.request("GET", f"/v1/fine_tuning/jobs/{job.id}").json()["progress"]
    assert progress["step"] == kept
    client.resume(job.id)

    def kill() -> None:
        until(lambda: newest() > kept)
        os.kill(pid_of_rank(job.id, 1), signal.SIGKILL)

    with meanwhile(kill):
        lost = installation.train(job)
    assert (lost.status, lost.attempt) == ("queued", 3)
    assert "killed by SIGKILL; the job is queued again" in messages_of(installation, job.id)[-1]
    assert pids_with(job.id) == []

    ended = installation.train(job)
    assert ended.status == "succeeded", ended.error
    metrics = installation.request("GET", f"/v1/fine_tuning/jobs/{job.id}/metrics").json()
    assert [step["step"] for step in metrics["data"]] == list(range(1, 151))
    messages = messages_of(installation, job.id)
    assert any(message.endswith(" in 2 processes: 150 steps") for message in messages)
    assert not any("Not where the checkpoint was made" in message for message in messages)


def test_a_job_with_a_memory_trains_in_one_process_and_says_so(installation: Installation) -> None:
    job = installation.create_job(installation.upload(PAIRS), loss={"temperature": 0.1, "memory_size": 8})

    ended = installation.train(job)

    assert ended.status == "succeeded", ended.error
    messages = messages_of(installation, job.id)
    assert any("loss.memory_size" in message and "in one instead of 2" in message for message in messages)
