"""Everything stored, held against rows and manifests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select, text, update

from storage import files, jobs, manifests, models, ownership, uploads
from storage.artifacts import ArtifactStore, StoredFile
from storage.checkpoints import JobCheckpoints
from storage.database import Database
from storage.ids import new_id
from storage.search_trials import SearchTrials
from storage.tables import Model, Team
from storage.verification import Finding, Verification
from tests.storage.rows import TEAM, USABLE, add_job, add_upload, job_of

CONTENT = b"one\n" * 100


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def findings(database: Database, store: ArtifactStore) -> list[Finding]:
    return list(Verification(database, store).findings())


async def stream() -> AsyncIterator[bytes]:
    yield CONTENT


def add_stored_file(database: Database, store: ArtifactStore) -> tuple[str, Path]:
    file_id = new_id("file")
    stored = asyncio.run(store.write_file(file_id, stream()))
    with database.session(TEAM) as session:
        files.create(session, file_id, filename="rows.jsonl", purpose="fine-tune", stored=stored)
    with database.session_across_teams() as session:
        files.record_verdict(session, file_id, USABLE)
    return file_id, store.file(file_id)


def add_job_in(database: Database, store: ArtifactStore, state: str) -> str:
    """A job in a state, whose file is stored."""
    return add_job(database, state, training_file=add_stored_file(database, store)[0])


def add_stored_part(database: Database, store: ArtifactStore) -> tuple[str, Path]:
    upload_id = add_upload(database, len(CONTENT))

    async def run() -> StoredFile:
        async with store.receiving_part(upload_id, stream()) as part:
            store.keep_part(upload_id, part)
        return part.stored

    stored = asyncio.run(run())
    with database.session(TEAM) as session:
        part_id = uploads.add_part(session, upload_id, stored).id
    return part_id, store.part(upload_id, stored.sha256)


def add_stored_model(database: Database, store: ArtifactStore) -> tuple[str, Path]:
    job_id = add_job_in(database, store, "succeeded")
    with store.publishing_model(f"{job_id}-1") as folder:
        fill(folder)
    path = store.model(f"{job_id}-1") / "model.safetensors"
    with database.session_across_teams() as session:
        session.execute(update(Model).where(Model.job_id == job_id).values(weights_sha256=manifests.sha256(path)))
    return job_of(database, job_id).fine_tuned_model or "", path


def add_checkpoint(database: Database, store: ArtifactStore) -> tuple[str, Path]:
    job_id = add_job_in(database, store, "paused")
    stored = JobCheckpoints(store, job_id)
    with stored.publishing(3) as folder:
        fill(folder)
    return f"{job_id}/3", stored.folder(3) / "model.safetensors"


def add_trial(database: Database, store: ArtifactStore) -> tuple[str, Path]:
    job_id = add_job_in(database, store, "running")
    stored = SearchTrials(store, job_id)
    with stored.publishing("trial", 0) as folder:
        fill(folder)
    return f"{job_id}/trial-0", stored.folder("trial", 0) / "model.safetensors"


def fill(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(CONTENT)


KINDS: dict[str, Callable[[Database, ArtifactStore], tuple[str, Path]]] = {
    "file": add_stored_file,
    "part": add_stored_part,
    "model": add_stored_model,
    "checkpoint": add_checkpoint,
    "checkpoint ": add_trial,
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    [outside] = (folder.parent for folder in path.parents if folder.name == "artifacts")
    path.symlink_to(path.rename(outside / new_id("elsewhere")))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "cut short": lambda path: os.truncate(path, 399),
    "empty": lambda path: os.truncate(path, 0),
    "missing": lambda path: path.unlink(),
    "a link": link,
}


def test_where_all_is_well_nothing_is_found(database: Database, store: ArtifactStore) -> None:
    for add in KINDS.values():
        add(database, store)
    verification = Verification(database, store)

    assert list(verification.findings()) == []
    assert verification.looked_at == {"file": 4, "part": 1, "model": 1, "checkpoint": 2}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_named_with_what_to_do(database: Database, store: ArtifactStore, damage: str) -> None:
    sound = [add(database, store) for add in KINDS.values()]
    damaged = [(kind.strip(), *add(database, store)) for kind, add in KINDS.items()]
    for _, _, path in damaged:
        DAMAGES[damage](path)

    found = findings(database, store)

    assert {(finding.kind, finding.name) for finding in found} == {(kind, name) for kind, name, _ in damaged}
    assert len(found) == len(damaged)
    assert not {finding.name for finding in found} & {name for name, _ in sound}
    for finding in found:
        assert finding.what
        assert finding.remedy.endswith(".")
        assert str(store.root) not in finding.what


def test_a_damaged_model_is_withdrawn_and_a_mended_one_is_not(database: Database, store: ArtifactStore) -> None:
    name, path = add_stored_model(database, store)
    flip(path)
    assert [finding.what for finding in findings(database, store)] == ["model.safetensors differs from its checksum"]
    assert damage_of(database, name) == "model.safetensors differs from its checksum"

    flip(path)

    assert findings(database, store) == []
    assert damage_of(database, name) is None


def damage_of(database: Database, name: str) -> str | None:
    with database.session_across_teams() as session:
        return session.scalars(select(Model.damage).where(Model.id == name)).one()


def test_models_in_each_others_places_are_both_found(database: Database, store: ArtifactStore) -> None:
    one, two = add_stored_model(database, store)[1].parent, add_stored_model(database, store)[1].parent
    with database.session_across_teams() as session:
        session.execute(update(Model).where(Model.artifact == two.name).values(weights_sha256="0" * 64))

    [finding] = findings(database, store)

    assert finding.what == "model.safetensors is another model's"
    assert one.name not in finding.remedy


def test_what_the_disk_does_not_give_is_found_and_withdraws_nothing(
    database: Database, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _ = add_stored_model(database, store)
    for add in (add_stored_file, add_stored_part, add_checkpoint):
        add(database, store)

    def read(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(manifests, "sha256", read)

    found = findings(database, store)
    assert {finding.kind for finding in found} == {"file", "part", "model", "checkpoint"}
    assert {finding.what for finding in found} == {"can't be read (Input/output error)"}
    assert damage_of(database, name) is None


def test_what_is_deleted_is_not_missed(database: Database, store: ArtifactStore) -> None:
    file_id, file = add_stored_file(database, store)
    model, weights = add_stored_model(database, store)
    _, checkpoint = add_checkpoint(database, store)
    with database.session(TEAM) as session:
        files.delete(session, file_id)
        models.delete(session, model)
        jobs.cancel(session, checkpoint.parent.parent.name)
    for path in (file, weights, checkpoint):
        path.unlink()

    assert findings(database, store) == []


def test_a_checkpoint_that_is_removed_meanwhile_is_not_missed(database: Database, store: ArtifactStore) -> None:
    _, path = add_checkpoint(database, store)
    add_stored_file(database, store)
    path.unlink()
    verification = Verification(database, store)
    looking = verification._files

    def look_meanwhile() -> object:
        JobCheckpoints(store, path.parent.parent.name).remove(3)
        return looking()

    verification._files = look_meanwhile  # type: ignore[method-assign,assignment]

    assert list(verification.findings()) == []


def test_artifacts_of_another_database_are_told(database: Database, store: ArtifactStore) -> None:
    with database.session_across_teams() as session:
        assert ownership.claim(session, store)
        session.execute(update(Team).values(created_at=func.clock_timestamp() - text("interval '1 day'")))

    [finding] = findings(database, store)

    assert (finding.kind, finding.what) == ("folder", "belongs to another database")
    assert "DATABASE_URL" in finding.remedy
