from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sqlalchemy import event, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from encoders import export
from storage import attempts
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.tables import Model
from tests.installation import HELD_OUT, PAIRS, TINY, Installation
from tests.processes import pids_with, until
from tests.workers.following import meanwhile, messages_of
from workers.training import run
from workers.training.recorder import Attempt

LABELLED = [{"text": f"the word {word} and {number}", "label": word} for word in "abcde" for number in range(6)]
HELD_OUT_LABELLED = [{**row, "text": f"{row['text']} again"} for row in LABELLED]
TEXTS = ["the word a", "b said again", "something else, and a good deal longer than the others", "ü"]


@pytest.fixture(scope="module")
def store(shared: Installation) -> ArtifactStore:
    return ArtifactStore(shared.settings.artifacts_dir)


@pytest.fixture(scope="module")
def trained(shared: Installation, pairs_file: str) -> Any:
    """A job that has trained three steps, with a validation file."""
    job = shared.train_as_worker(shared.create_job(pairs_file, validation_file=shared.upload(HELD_OUT), seed=7))
    assert job.status == "succeeded", job.error
    return job


def model_of(shared: Installation, job: Any) -> Model:
    with shared.database.session_across_teams() as session:
        return session.scalars(select(Model).where(Model.job_id == job.id)).one()


def published(store: ArtifactStore) -> set[str]:
    """Everything in the artifact store but the uploaded files."""
    root = store.model("").parent
    return {path.name for folder in ("models", "unfinished", "checkpoints") for path in (root / folder).iterdir()}


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """What a full disk is to a writer; processes that start meanwhile inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- a job that goes well ---


def test_what_is_published_opens_in_sentence_transformers_with_the_same_vectors(
    shared: Installation, store: ArtifactStore, trained: Any
) -> None:
    artifact = model_of(shared, trained).artifact
    assert store.damage_of(artifact) is None
    folder = store.model(artifact)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)

    answer = shared.openai.embeddings.create(model=trained.fine_tuned_model, input=TEXTS)
    ours = np.array([entry.embedding for entry in answer.data])

    assert np.linalg.norm(ours, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (ours * theirs).sum(axis=1) == pytest.approx(1.0, abs=1e-5)


def test_training_changes_the_vectors(shared: Installation, trained: Any) -> None:
    base, tuned = (
        np.array([entry.embedding for entry in shared.openai.embeddings.create(model=model, input=TEXTS).data])
        for model in (TINY, trained.fine_tuned_model)
    )

    assert np.abs(base - tuned).max() > 1e-4


def test_the_models_row_says_what_it_is_made_of(shared: Installation, store: ArtifactStore, trained: Any) -> None:
    row = model_of(shared, trained)

    assert (row.base_model, row.dimension, row.max_seq_length) == (TINY, 32, 48)
    assert row.training_file == trained.training_file
    assert trained.trained_tokens > 0


def test_events_tell_what_was_done_in_order(shared: Installation, trained: Any) -> None:
    messages = messages_of(shared, trained.id)

    read = [message for message in messages if message.startswith("Read ")]
    assert read == ["Read 20 rows with 40 different texts", "Read 6 rows with 12 different texts"]
    assert f"Training {TINY} on cpu: 3 steps" in messages
    validation = messages[-2]
    assert validation.startswith("Validation loss: ")
    assert "before training" in validation
    assert messages[-1] == f"New fine-tuned model created: {trained.fine_tuned_model}"


def test_the_next_job_on_a_file_reuses_its_tokens_and_makes_damaged_ones_again(
    shared: Installation, pairs_file: str, trained: Any
) -> None:
    entries = {path: (path / "ids.npy").stat().st_ino for path in shared.settings.derived_dir.iterdir()}
    assert entries
    again = shared.train(shared.create_job(pairs_file, seed=7))
    assert {path: (path / "ids.npy").stat().st_ino for path in entries} == entries
    for path in entries:
        (path / "ids.npy").write_bytes(b"")
    repaired = shared.train(shared.create_job(pairs_file, seed=7))
    weights = {model_of(shared, job).weights_sha256 for job in (trained, again, repaired)}
    assert len(weights) == 1


def test_labels_with_few_texts_are_told(shared: Installation) -> None:
    rows = [*LABELLED, {"text": "the only one", "label": "z"}, LABELLED[0]]
    job = shared.train(shared.create_job(shared.upload(rows)))

    messages = messages_of(shared, job.id)
    assert any("texts: 1 of 6." in message for message in messages)
    assert "Rows that repeat a text and its label, and are left out: 1" in messages


def test_what_training_resolved_is_echoed(shared: Installation, trained: Any) -> None:
    hyperparameters = trained.method.contrastive["hyperparameters"]

    assert (hyperparameters["micro_batch_size"], hyperparameters["precision"]) == (
        hyperparameters["batch_size"],
        "fp32",
    )


def test_steps_are_written_for_tensorboard(shared: Installation, trained: Any) -> None:
    (file,) = (shared.settings.tensorboard_dir / trained.id).iterdir()

    assert file.read_bytes().count(b"train/loss") == 3


def test_every_step_is_measured(shared: Installation, trained: Any) -> None:
    metrics = shared.request("GET", f"/v1/fine_tuning/jobs/{trained.id}/metrics").json()

    assert [step["step"] for step in metrics["data"]] == [1, 2, 3]
    assert metrics["summary"]["steps"] == 3


@pytest.mark.parametrize(
    ("rows", "held_out", "loss"),
    [
        pytest.param(
            LABELLED,
            HELD_OUT_LABELLED,
            {"name": "supcon", "temperature": "learnable", "reduction": "class"},
            id="labels",
        ),
        pytest.param(
            PAIRS, HELD_OUT, {"temperature": 0.05, "symmetric": False, "memory_size": 64}, id="queries and documents"
        ),
        pytest.param(PAIRS, HELD_OUT, {"temperature": 0.05, "symmetric": True}, id="both directions"),
    ],
)
def test_every_loss_trains_and_reports(shared: Installation, rows: Any, held_out: Any, loss: dict[str, Any]) -> None:
    files = {"training_file": shared.upload(rows), "validation_file": shared.upload(held_out)}
    job = shared.train(shared.create_job(loss=loss, max_steps=12, **files))

    assert job.status == "succeeded", job.error
    steps = shared.request("GET", f"/v1/fine_tuning/jobs/{job.id}/metrics").json()["data"]
    assert steps[-1]["loss"] > 0
    assert 0 <= steps[-1]["accuracy"] <= 1
    temperatures = {step["temperature"] for step in steps}
    assert len(temperatures) == (12 if loss["temperature"] == "learnable" else 1)


def test_the_same_seed_gives_the_same_bytes(shared: Installation, pairs_file: str, trained: Any) -> None:
    again = shared.train(shared.create_job(pairs_file, seed=7))

    assert model_of(shared, again).weights_sha256 == model_of(shared, trained).weights_sha256


def test_a_tuned_model_can_be_tuned_further_and_keeps_its_base(
    shared: Installation, store: ArtifactStore, pairs_file: str, trained: Any
) -> None:
    further = shared.train(shared.create_job(pairs_file, model=trained.fine_tuned_model))

    assert further.status == "succeeded", further.error
    row = model_of(shared, further)
    assert row.base_model == TINY
    assert row.id.startswith(f"ft:{TINY}:")
    assert row.weights_sha256 != model_of(shared, trained).weights_sha256
    assert store.damage_of(row.artifact) is None


# --- a job that fails, with a reason ---


def test_a_learning_rate_that_is_far_too_high_is_a_failure_that_says_what_to_try(
    shared: Installation, store: ArtifactStore, pairs_file: str
) -> None:
    before = published(store)
    job = shared.create_job(
        pairs_file, max_steps=200, hyperparameters={"learning_rate": 1e30, "n_epochs": 100, "warmup_ratio": 0.0}
    )

    failed = shared.train(job)

    assert failed.status == "failed"
    assert failed.error.code == "non_finite_loss"
    assert " at step " in failed.error.message
    assert "Try a tenth of the learning rate" in failed.error.message
    steps = shared.request("GET", f"/v1/fine_tuning/jobs/{job.id}/metrics").json()["data"]
    assert f"at step {len(steps) + 1} of" in failed.error.message, "the steps before it are there to be looked at"
    assert published(store) == before


def test_a_training_file_whose_bytes_are_gone_is_named(shared: Installation, store: ArtifactStore) -> None:
    file_id = shared.upload(PAIRS)
    job = shared.create_job(file_id)
    store.delete_file(file_id)

    failed = shared.train(job)

    assert (failed.status, failed.error.code) == ("failed", "training_file_missing")
    assert file_id in failed.error.message


def test_a_tuned_model_whose_bytes_were_altered_is_not_trained_on(
    shared: Installation, store: ArtifactStore, pairs_file: str
) -> None:
    job = shared.create_job(pairs_file)
    tuned = shared.publish(shared.openai.fine_tuning.jobs.retrieve(job.id))
    weights = store.model(model_of(shared, job).artifact) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    failed = shared.openai.fine_tuning.jobs.retrieve(shared.create_job(pairs_file, model=tuned).id)

    assert (failed.status, failed.error.code) == ("failed", "artifact_corrupt")
    assert "model.safetensors" in failed.error.message


def test_base_weights_that_are_damaged_are_a_failure_with_a_reason(
    shared: Installation, base_models_dir: Path, pairs_file: str
) -> None:
    damaged = base_models_dir / "tiny" / "damaged"
    shutil.copytree(base_models_dir / TINY, damaged)
    try:
        job = shared.create_job(pairs_file, model="tiny/damaged")
        weights = damaged / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])

        failed = shared.train(job)
    finally:
        shutil.rmtree(damaged)

    assert (failed.status, failed.error.code) == ("failed", "weights_unavailable")
    assert "model.safetensors" in failed.error.message


# --- a job that is interrupted ---


def test_a_disk_that_fills_up_at_a_checkpoint_pauses_the_job_and_leaves_nothing_half_written(
    shared: Installation, store: ArtifactStore, pairs_file: str, trained: Any
) -> None:
    before = published(store)
    job = shared.create_job(pairs_file, seed=7)

    with no_file_longer_than(100_000):
        paused = shared.train_as_worker(job)

    assert (paused.status, paused.error) == ("paused", None)
    told = messages_of(shared, job.id)[-1]
    assert "the disk is full" in told
    assert "Free space" in told
    assert f"POST /v1/fine_tuning/jobs/{job.id}/resume" in told
    assert {path.name for path in store.checkpoints.glob(f"{job.id}/*")} == set()

    shared.openai.fine_tuning.jobs.resume(job.id)
    ended = shared.train_as_worker(job)
    assert ended.status == "succeeded"
    assert model_of(shared, ended).weights_sha256 == model_of(shared, trained).weights_sha256
    assert published(store) == {*before, f"{job.id}-2"}


def test_a_disk_that_fills_up_while_the_model_is_saved_pauses_the_job_with_its_last_checkpoint(
    shared: Installation, store: ArtifactStore, pairs_file: str, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = published(store)
    job = shared.create_job(pairs_file, seed=7)
    save = export.save

    def save_on_a_full_disk(*arguments: Any, **options: Any) -> None:
        with no_file_longer_than(100_000):
            save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(export, "save", save_on_a_full_disk)
        paused = shared.train(job)

    assert paused.status == "paused"
    assert published(store) == {*before, job.id}
    [kept] = shared.openai.fine_tuning.jobs.checkpoints.list(job.id)
    assert (kept.step_number, kept.fine_tuning_job_id) == (3, job.id)
    assert kept.metrics.train_loss > 0

    shared.openai.fine_tuning.jobs.resume(job.id)
    ended = shared.train_as_worker(job)
    assert ended.status == "succeeded"
    assert "Goes on from the checkpoint after step 3 of 3" in messages_of(shared, job.id)
    assert model_of(shared, ended).weights_sha256 == model_of(shared, trained).weights_sha256
    assert published(store) == {*before, f"{job.id}-2"}
    assert list(shared.openai.fine_tuning.jobs.checkpoints.list(job.id)) == []


def test_a_training_that_is_asked_to_stop_keeps_its_last_step(
    shared: Installation, pairs_file: str, trained: Any
) -> None:
    job = shared.create_job(pairs_file, seed=7)
    assert shared.interrupt(job, after_step=2).status == "queued"

    ended = shared.train_as_worker(job)

    assert "Goes on from the checkpoint after step 2 of 3" in messages_of(shared, job.id)
    assert model_of(shared, ended).weights_sha256 == model_of(shared, trained).weights_sha256
    assert steps_of(shared, job.id) == [1, 2, 3]


def test_a_training_process_that_is_killed_goes_on_and_publishes_the_same_bytes(installation: Installation) -> None:
    file_id = installation.upload(PAIRS)

    def create() -> Any:
        return installation.create_job(
            file_id,
            max_steps=200,
            # Two jobs may find another precision faster, in a probe of milliseconds.
            hyperparameters={"n_epochs": 1000, "batch_size": 4, "precision": "fp32"},
            checkpointing={"every_steps": 20},
        )

    unbroken = installation.train_as_worker(create())
    job = create()
    client = installation.openai.fine_tuning.jobs

    def kill() -> None:
        until(lambda: list(client.checkpoints.list(job.id)) != [])
        [training] = pids_with(job.id)
        os.kill(training, signal.SIGKILL)

    with meanwhile(kill):
        installation.train_as_worker(job)
    ended = installation.train_as_worker(job)

    assert (unbroken.status, ended.status, ended.attempt) == ("succeeded", "succeeded", 2)
    assert any("Goes on from the checkpoint after step " in message for message in messages_of(installation, job.id))
    assert model_of(installation, ended).weights_sha256 == model_of(installation, unbroken).weights_sha256
    assert steps_of(installation, job.id) == list(range(1, 201))
    assert list(client.checkpoints.list(job.id)) == []


def steps_of(installation: Installation, job_id: str) -> list[int]:
    metrics = installation.request("GET", f"/v1/fine_tuning/jobs/{job_id}/metrics").json()
    return [step["step"] for step in metrics["data"]]


# --- a database that is away at the wrong moment ---


class LosingDatabase(Database):
    """Loses the answer to the commit that makes a model: what it wrote is there, and nobody is told."""

    lost = 0

    @contextmanager
    def session_across_teams(self) -> Iterator[Session]:
        made: list[bool] = []
        with super().session_across_teams() as session:
            event.listen(session, "pending_to_persistent", lambda _, row: made.append(isinstance(row, Model)))
            yield session
        if any(made) and not self.lost:
            self.lost += 1
            raise OperationalError("COMMIT", None, ConnectionResetError())


def test_a_success_whose_confirmation_was_lost_keeps_its_model(
    shared: Installation, store: ArtifactStore, pairs_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.patience._PAUSE_SECONDS", 0.0)
    job = shared.create_job(pairs_file)
    database = LosingDatabase(shared.settings.required_database_url, pool_size=2)
    with database.session_across_teams() as session:
        assert attempts.start(session, job.id, 1, "worker-1") is not None

    run.train(shared.settings, database, Attempt(job.id, 1), lambda: False)

    assert database.lost == 1
    database.dispose()
    ended = shared.openai.fine_tuning.jobs.retrieve(job.id)
    assert ended.status == "succeeded"
    assert store.damage_of(model_of(shared, ended).artifact) is None
    assert messages_of(shared, job.id).count(f"New fine-tuned model created: {ended.fine_tuned_model}") == 1
