"""A job whose training runs in two processes, through the real worker path."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from storage import attempts
from tests.installation import PAIRS, Installation
from tests.processes import pids_with, until
from tests.workers.following import meanwhile, messages_of
from workers.training import run
from workers.training.ranks import Ranks
from workers.training.recorder import Attempt


def pid_of_rank(job_id: str, rank: int) -> int:
    def found() -> list[int]:
        return [pid for pid in pids_with(job_id) if f"\0RANK={rank}\0".encode() in environment_of(pid)]

    [pid] = until(found)
    return pid


def environment_of(pid: int) -> bytes:
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


def test_a_job_that_loses_a_process_is_queued_again_and_goes_on_to_its_end(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKENESS_TRAINING_PROCESSES", "2")
    job = installation.create_job(
        installation.upload(PAIRS),
        max_steps=60,
        hyperparameters={"n_epochs": 1000, "batch_size": 4, "precision": "fp32"},
        checkpointing={"every_steps": 5},
    )

    def kill() -> None:
        until(lambda: list(installation.openai.fine_tuning.jobs.checkpoints.list(job.id)) != [])
        os.kill(pid_of_rank(job.id, 1), signal.SIGKILL)

    with meanwhile(kill):
        lost = installation.train_as_worker(job)
    assert (lost.status, lost.attempt) == ("queued", 2)
    told = messages_of(installation, job.id)[-1]
    assert "was killed by SIGKILL" in told
    assert "the job is queued again" in told
    assert pids_with(job.id) == []

    ended = installation.train_as_worker(job)
    assert ended.status == "succeeded", ended.error
    metrics = installation.request("GET", f"/v1/fine_tuning/jobs/{job.id}/metrics").json()
    assert [step["step"] for step in metrics["data"]] == list(range(1, 61))
    messages = messages_of(installation, job.id)
    assert any(message.endswith(" in 2 processes: 60 steps") for message in messages)
    assert any(message.startswith("Goes on from the checkpoint after step ") for message in messages)
    assert not any("Not where the checkpoint was made" in message for message in messages)


def test_a_job_with_a_memory_trains_in_one_process_and_says_so(shared: Installation, pairs_file: str) -> None:
    job = shared.create_job(pairs_file, loss={"temperature": 0.1, "memory_size": 8})
    with shared.database.session_across_teams() as session:
        assert attempts.start(session, job.id, 1, "worker-1") is not None
    ranks = Ranks()
    ranks.count = 2

    run.train(shared.settings, shared.database, Attempt(job.id, 1), lambda: False, ranks)

    assert shared.openai.fine_tuning.jobs.retrieve(job.id).status == "succeeded"
    messages = messages_of(shared, job.id)
    assert any("loss.memory_size" in message and "in one instead of 2" in message for message in messages)
    assert any(message.endswith(" on cpu: 3 steps") for message in messages)
