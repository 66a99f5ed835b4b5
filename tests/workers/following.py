"""Following a job from outside while a worker trains it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.installation import PAIRS, Installation
from tests.processes import until


def status_of(installation: Installation, job_id: str) -> str:
    return installation.openai.fine_tuning.jobs.retrieve(job_id).status


def messages_of(installation: Installation, job_id: str) -> list[str]:
    """What the job's events say, oldest first, without those of metrics."""
    events = installation.request("GET", f"/v1/fine_tuning/jobs/{job_id}/events?limit=100").json()["data"]
    return [event["message"] for event in reversed(events) if event["type"] == "message"]


def long_job(installation: Installation, *, max_steps: int = 2500) -> Any:
    """A job that trains for some seconds, so that something can happen to it."""
    return installation.create_job(
        installation.upload(PAIRS), max_steps=max_steps, hyperparameters={"n_epochs": 1000, "batch_size": 4}
    )


def until_training(installation: Installation, job_id: str) -> None:
    """Wait until steps have been taken."""

    def has_progress() -> bool:
        job = installation.request("GET", f"/v1/fine_tuning/jobs/{job_id}").json()
        return job["progress"] is not None

    until(has_progress)


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Do something while the block runs."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as failure:
            failures.append(failure)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    assert failures == []
