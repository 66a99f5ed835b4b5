"""What is removed because nobody will ask for it again, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, text, update

from storage import garbage, jobs, models, ownership
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.garbage import Retention
from storage.tables import Team
from tests.storage.rows import TEAM, add_job, job_of

AT_ONCE = Retention(deleted_model_seconds=0)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def publish(store: ArtifactStore, artifact: str) -> None:
    with store.publishing_model(artifact) as folder:
        (folder / "model.safetensors").write_bytes(b"weights")


def test_folders_of_models_that_are_there_stay(database: Database, store: ArtifactStore) -> None:
    job_id = add_job(database, "succeeded")
    publish(store, f"{job_id}-1")

    assert garbage.sweep(database, store, AT_ONCE) == 0
    assert store.damage_of(f"{job_id}-1") is None


def test_folders_of_attempts_that_never_made_a_model_go(database: Database, store: ArtifactStore) -> None:
    killed, running = add_job(database, "failed"), add_job(database, "running")
    for artifact in (f"{killed}-1", f"{running}-1", "ftjob-of-another-database-1"):
        publish(store, artifact)
        (store.unfinished / f"{artifact}-0a1b2c3d").mkdir()

    assert garbage.sweep(database, store, AT_ONCE) == 2

    kept = {f"{running}-1", "ftjob-of-another-database-1"}
    assert set(store.models()) == kept
    assert {path.name for path in store.unfinished.iterdir()} == {f"{artifact}-0a1b2c3d" for artifact in kept}


def test_a_deleted_models_folder_goes_after_a_while(database: Database, store: ArtifactStore) -> None:
    job_id = add_job(database, "succeeded")
    publish(store, f"{job_id}-1")
    with database.session(TEAM) as session:
        models.delete(session, job_of(database, job_id).fine_tuned_model or "")

    assert garbage.sweep(database, store, Retention(deleted_model_seconds=600)) == 0
    assert garbage.sweep(database, store, AT_ONCE) == 1
    assert store.models() == []
    assert garbage.sweep(database, store, AT_ONCE) == 0


@pytest.mark.parametrize(("days", "left"), [(0.0, {"running", "other"}), (2.0, {"running", "fresh", "other"})])
def test_what_was_written_for_tensorboard_goes_some_time_after_its_job_has_ended(
    database: Database, store: ArtifactStore, tmp_path: Path, days: float, left: set[str]
) -> None:
    root = tmp_path / "tensorboard"
    names = {"running": add_job(database, "running"), "fresh": add_job(database, "failed"), "other": "notes"}
    names["old"] = add_job(database, "succeeded")
    with database.session_across_teams() as session:
        jobs.get(session, names["old"]).finished_at = func.clock_timestamp() - text("interval '3 days'")
    for name in names.values():
        (root / name).mkdir(parents=True)
        (root / name / "events.out").touch()

    garbage.sweep(database, store, Retention(tensorboard=root, tensorboard_days=days))

    assert {path.name for path in root.iterdir()} == {names[name] for name in left}


def test_without_a_folder_for_tensorboard_there_is_nothing_to_do(
    database: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    assert garbage.sweep(database, store, Retention(tensorboard=tmp_path / "none")) == 0


# --- whose it is ---


def claimed(database: Database, store: ArtifactStore) -> bool:
    with database.session_across_teams() as session:
        return ownership.claim(session, store)


def test_artifacts_belong_to_the_database_that_claims_them_first(database: Database, store: ArtifactStore) -> None:
    assert claimed(database, store)
    assert claimed(database, store)

    make_anew(database)

    assert not claimed(database, store)
    (store.root / ownership.OWNER).unlink()
    assert claimed(database, store)


def make_anew(database: Database) -> None:
    """What dropping the database and migrating again does, as far as its artifacts can tell."""
    with database.session_across_teams() as session:
        session.execute(update(Team).values(created_at=func.clock_timestamp()))


def test_a_database_keeps_its_artifacts_when_time_zones_change(database: Database, store: ArtifactStore) -> None:
    assert claimed(database, store)
    with database.session_across_teams() as session:
        session.execute(text("SET LOCAL TIME ZONE 'Asia/Tokyo'"))
        assert ownership.claim(session, store)
    assert not list(store.root.glob(f"{ownership.OWNER}-*"))
