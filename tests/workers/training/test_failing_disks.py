"""Whole jobs on disks that are full or fail: they wait or try again, and end at the bytes of an undisturbed one."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from sqlalchemy import select

from storage import job_moves
from storage.artifacts import ArtifactStore
from storage.tables import Model
from tests.faults import Fault, Kind, at_every, failing
from tests.installation import HELD_OUT, PAIRS, Installation
from tests.workers.following import messages_of
from tests.workers.test_job_files import CORPUS, QUERIES, create, lines, qrels, upload
from workers.data import beir

FAILED = "The disk of the data directory failed (Input/output error)"


@pytest.fixture(scope="module")
def store(shared: Installation) -> ArtifactStore:
    return ArtifactStore(shared.settings.artifacts_dir)


@pytest.fixture(scope="module")
def undisturbed(shared: Installation, pairs_file: str) -> str:
    """The checksum of the weights of a job that nothing happens to."""
    job = shared.create_job(pairs_file, max_steps=2, seed=7)
    shared.train(job)
    return weights_of(shared, job.id)


def weights_of(shared: Installation, job_id: str) -> str:
    with shared.database.session_across_teams() as session:
        return session.scalars(select(Model.weights_sha256).where(Model.job_id == job_id)).one()


def whole(store: ArtifactStore, job: Any) -> bool:
    """Whether the job's model is whole, and of its attempts nothing else is left."""
    return [name for name in store.models() if name.startswith(job.id)] == [f"{job.id}-{job.attempt}"] and (
        store.damage_of(f"{job.id}-{job.attempt}") is None
    )


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_wherever_the_disk_fails_a_job_publishes_once_and_the_same_bytes(
    shared: Installation, store: ArtifactStore, pairs_file: str, undisturbed: str, number: int
) -> None:
    def run_job(fault: Fault) -> None:
        job = shared.create_job(pairs_file, max_steps=2, seed=7)
        after = shared.train(job)
        if fault.fired:
            assert after.status == ("queued" if number == errno.EIO else "paused")
            assert [name for name in store.models() if name.startswith(job.id)] == []
            shared.openai.fine_tuning.jobs.resume(job.id)
            after = shared.train(job)
        assert after.status == "succeeded", after.error
        assert weights_of(shared, job.id) == undisturbed
        assert whole(store, after)

    # The checkpoint's and the model's; which calls else may fail is tried where they are made.
    assert at_every("rename", number, store.root, run_job) == 2
    assert list(store.unfinished.iterdir()) == []


def test_a_disk_that_goes_on_failing_pauses_the_job_with_its_last_checkpoint(
    shared: Installation, store: ArtifactStore, pairs_file: str, undisturbed: str
) -> None:
    job = shared.create_job(pairs_file, max_steps=2, seed=7)
    for attempt in range(1, job_moves.MOST_CRASHES + 1):
        # The model's, after the checkpoint's of the first attempt.
        with failing("rename", 2 if attempt == 1 else 1, errno.EIO, store.unfinished) as fault:
            paused = shared.train(job)
        assert fault.fired

    assert (paused.status, paused.error) == ("paused", None)
    messages = messages_of(shared, job.id)
    assert sum(message.startswith(FAILED) for message in messages) == job_moves.MOST_CRASHES
    assert "the last checkpoint is kept" in messages[-1]
    assert "likeness verify" in messages[-1]
    [kept] = shared.openai.fine_tuning.jobs.checkpoints.list(job.id)
    assert kept.step_number == 2

    shared.openai.fine_tuning.jobs.resume(job.id)
    shared.train(job)
    assert weights_of(shared, job.id) == undisturbed


def test_a_model_that_is_altered_before_a_job_trains_it_further_is_not_trained_on(
    shared: Installation, store: ArtifactStore, pairs_file: str
) -> None:
    model = shared.publish(shared.create_job(pairs_file))
    job = shared.create_job(pairs_file, model=model)
    assert job.status == "queued"
    maker = shared.openai.models.retrieve(model).fine_tuning_job
    (store.model(f"{maker}-1") / "config.json").unlink()

    failed = shared.train(job)

    assert (failed.status, failed.error.code) == ("failed", "artifact_corrupt")
    assert shared.openai.models.retrieve(model).damage == "config.json is missing"


# --- before the training ---


@pytest.mark.parametrize(
    ("kind", "number", "remedy"),
    [
        ("write", errno.EDQUOT, "Free space"),
        ("fsync", errno.EIO, "See to the disk"),
        ("mkdir", errno.EROFS, "See to the disk"),
    ],
)
def test_files_that_the_disk_refuses_are_prepared_once_it_does_not(
    shared: Installation, kind: Kind, number: int, remedy: str
) -> None:
    file_id = shared.upload([{**row, "anchor": f"{kind} {number} {row['anchor']}"} for row in PAIRS])

    with failing(kind, 1, number, shared.settings.derived_dir):
        job = shared.create_job(file_id)

    assert (job.status, job.error) == ("paused", None)
    assert remedy in messages_of(shared, job.id)[-1]
    assert all((entry / "manifest.json").exists() for entry in shared.settings.derived_dir.iterdir())
    shared.openai.fine_tuning.jobs.resume(job.id)
    assert shared.prepare(job).status == "queued"


def test_a_preparation_that_was_paused_counts_as_none(shared: Installation) -> None:
    rows = [{**row, "anchor": f"often {row['anchor']}"} for row in PAIRS]
    job = shared.create_job(shared.upload(rows), prepared=False)
    for _ in range(job_moves.MOST_CRASHES + 1):
        with failing("fsync", 1, errno.ENOSPC, shared.settings.derived_dir):
            assert shared.prepare(job).status == "paused"
        shared.openai.fine_tuning.jobs.resume(job.id)

    assert shared.prepare(job).status == "queued"


def test_a_temporary_database_that_is_full_pauses_the_job_too(
    shared: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {
        "corpus": upload(shared, "corpus.jsonl", lines(CORPUS)),
        "queries": upload(shared, "queries.jsonl", lines(QUERIES)),
    }
    job = create(shared, upload(shared, "train.tsv", qrels(range(len(PAIRS) + len(HELD_OUT)))), data)
    with monkeypatch.context() as patch:
        patch.setattr(beir, "_SCHEMA", f"PRAGMA page_size = 512; {beir._SCHEMA} PRAGMA max_page_count = 1;")
        assert shared.prepare(job).status == "paused"
    assert "Free space" in messages_of(shared, job.id)[-1]

    shared.openai.fine_tuning.jobs.resume(job.id)

    assert shared.prepare(job).status == "queued"
