"""The demo's first half: a dataset becomes a tuned model."""

from pathlib import Path
from typing import Any

from service.demo.docstrings import Dataset, build_dataset, write_jsonl
from service.demo.events import ENDED, follow
from service.demo.failures import DemoError
from service.demo.progress import clock, progress
from service.demo.searching import tell_search
from service.demo.session import BASE_MODEL, Session

SUFFIX = "stdlib-docs"
#: Seconds to wait for a file of a few hundred kilobytes to be validated.
VALIDATE_WITHIN = 120.0


def make_dataset(session: Session, workdir: Path) -> Dataset:
    """Write train.jsonl and test.jsonl."""
    session.step("Build a dataset from Python's own documentation")
    dataset = build_dataset()
    workdir.mkdir(parents=True, exist_ok=True)
    write_jsonl(dataset.train, workdir / "train.jsonl")
    write_jsonl(dataset.test, workdir / "test.jsonl")
    session.say("A pair is a name, split into words, and what its docstring says:")
    session.say(dataset.train[0].row, style="green")
    session.say(f"{len(dataset.train)} pairs to train on, {len(dataset.test)} of other modules held out: {workdir}")
    return dataset


def upload(session: Session, path: Path) -> str:
    """Upload a file and wait until the server has read it through."""
    session.step(f"Upload {path.name}", "POST /v1/files")
    file = session.client.files.create(file=path, purpose="fine-tune")
    session.say(f"{file.id}: {file.bytes:,} bytes; the server checks every row.")
    try:
        file = session.client.files.wait_for_processing(file.id, poll_interval=0.2, max_wait_seconds=VALIDATE_WITHIN)
    except RuntimeError as error:  # the client's own, when time is up
        raise DemoError("The file is still not validated.", "Is a worker running? `likeness up` starts one.") from error
    if file.status != "processed":
        raise DemoError(f"The file was refused: {file.status_details}", f"See its errors: GET /v1/files/{file.id}.")
    session.say("Every row is fine.")
    return str(file.id)


def train(session: Session, file_id: str, method: Any, *, validation_file: str | None = None) -> str:
    """Start a job and follow it to its end: the tuned model's id."""
    session.step("Start a fine-tuning job", "POST /v1/fine_tuning/jobs")
    session.file_id = file_id
    job = session.client.fine_tuning.jobs.create(
        model=BASE_MODEL, training_file=file_id, validation_file=validation_file, method=method, suffix=SUFFIX, seed=0
    )
    session.job_id = job.id
    session.say(f"{job.id} is {job.status}. It pulls a name and its sentence together, all others apart (NT-Xent).")
    session.step("Watch it learn", f"GET /v1/fine_tuning/jobs/{job.id}/events/stream")
    watch(session, job.id)
    job = session.client.fine_tuning.jobs.retrieve(job.id)
    if job.status in ENDED:
        session.file_id = session.job_id = None
    if job.status != "succeeded":
        raise _job_failed(job)
    session.say(f"The new model is {job.fine_tuned_model}", style="green")
    session.say(f"Its card, with its figures: GET /v1/models/{job.fine_tuned_model}/card")
    if method["contrastive"]["hyperparameters"].get("trials"):
        tell_search(session, job.id, str(job.fine_tuned_model))
    return str(job.fine_tuned_model)


def watch(session: Session, job_id: str) -> None:
    """Print a job's messages and move its bar until it has ended."""
    styles = {"warn": "yellow", "error": "red"}
    with progress(session.console, "steps") as report:
        for event in follow(session.client, job_id):
            if event.name == "metrics":
                measured = event.data["data"]
                report(measured["step"], measured["total_steps"], _pace(measured))
            elif event.name == "message":
                session.say(event.data["message"], style=styles.get(event.data["level"], "dim"))


def _pace(measured: dict[str, Any]) -> str:
    words = [f"loss {measured['loss']:.3f}"]
    if measured.get("pairs_per_second") is not None:
        words.append(f"{measured['pairs_per_second']:,.0f} pairs/s")
    if measured.get("seconds_left") is not None:
        words.append(f"{clock(measured['seconds_left'])} left")
    return " · ".join(words)


def _job_failed(job: Any) -> DemoError:
    if job.status == "cancelled":
        return DemoError("The job was cancelled.", "Run the demo again.")
    reason = job.error.message if job.error else f"it is {job.status}"
    return DemoError(f"The job failed: {reason}", f"Its events say more: GET /v1/fine_tuning/jobs/{job.id}/events.")
