"""Tuned models' rows: found, withdrawn, deleted, and what of the artifact store nobody needs."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import func, select, text

from api_schemas.errors import LikenessError
from api_schemas.jobs import JobCreate
from storage import attempts, files, job_moves, jobs, models
from storage.database import Database
from storage.tables import Model
from tests.processes import until
from tests.storage.rows import OTHER_TEAM, TEAM, add_file, add_job, add_team, job_of, succeed

KEPT_SECONDS = 60.0


@pytest.fixture
def model(database: Database) -> str:
    """The name of a tuned model."""
    name = job_of(database, add_job(database, "succeeded")).fine_tuned_model
    assert name is not None
    return name


def add_job_on(database: Database, model: str, state: str) -> str:
    """A job in a state, that begins with a tuned model."""
    job_id = add_job(database, state)
    with database.session_across_teams() as session:
        jobs.get(session, job_id).model = model
    return job_id


def delete(database: Database, name: str, *, team: str = TEAM) -> None:
    with database.session(team) as session:
        models.delete(session, name)


def refused(database: Database, name: str, *, team: str = TEAM) -> LikenessError:
    with pytest.raises(LikenessError) as refusal:
        delete(database, name, team=team)
    return refusal.value


# --- deletion ---


def test_a_deleted_model_is_found_no_more(database: Database, model: str) -> None:
    delete(database, model)

    with database.session(TEAM) as session:
        assert models.find(session, model) is None
        assert models.list_models(session) == []
    assert refused(database, model).code == "model_not_found"


def test_another_teams_model_can_not_be_deleted(database: Database, model: str) -> None:
    add_team(database)

    assert refused(database, model, team=OTHER_TEAM).code == "model_not_found"


@pytest.mark.parametrize("state", ["validating_files", "queued", "running", "paused"])
def test_a_model_that_a_job_begins_with_is_kept_and_the_job_is_named(
    database: Database, model: str, state: str
) -> None:
    job_id = add_job_on(database, model, state)

    refusal = refused(database, model)

    assert (refusal.code, refusal.status) == ("model_in_use", 409)
    assert job_id in refusal.message
    assert refusal.headers["x-should-retry"] == "false"


def test_of_many_jobs_some_are_named(database: Database, model: str) -> None:
    job_ids = [add_job_on(database, model, "queued") for _ in range(5)]

    message = refused(database, model).message

    assert [job_id in message for job_id in job_ids] == [True, True, True, False, False]
    assert "and 2 more" in message


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_a_model_whose_jobs_have_ended_may_go(database: Database, model: str, state: str) -> None:
    add_job_on(database, model, state)

    delete(database, model)


def create_on(database: Database, model: str, file_id: str, before_commit: Any) -> None:
    request = JobCreate(model=model, training_file=file_id)
    with database.session(TEAM) as session:
        jobs.create(session, request, files.get(session, file_id), None, max_seq_length=48)
        before_commit()


def test_no_job_begins_with_a_model_that_is_deleted(database: Database, model: str) -> None:
    delete(database, model)

    with pytest.raises(LikenessError) as refusal:
        create_on(database, model, add_file(database), lambda: None)

    assert refusal.value.code == "model_not_found"


def test_a_deletion_waits_for_a_job_that_is_being_created_and_then_finds_it(database: Database, model: str) -> None:
    refusals: list[str] = []

    def try_to_delete() -> None:
        try:
            delete(database, model)
        except LikenessError as refusal:
            refusals.append(refusal.code)

    deletion = threading.Thread(target=try_to_delete)

    def let_it_wait() -> None:
        deletion.start()
        until(lambda: waits_for_a_lock(database))

    create_on(database, model, add_file(database), let_it_wait)
    deletion.join()

    assert refusals == ["model_in_use"]


def waits_for_a_lock(database: Database) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with database.session_across_teams() as session:
        return bool(session.scalar(text(waiting)))


# --- damage ---


def test_damage_is_recorded_once_and_taken_back(database: Database, model: str) -> None:
    with database.session_across_teams() as session:
        assert models.record_damage(session, model, "config.json is missing")
        assert not models.record_damage(session, model, "config.json is missing")
        assert models.find(session, model) is not None
    with database.session_across_teams() as session:
        assert session.scalar(select(Model.damage).where(Model.id == model)) == "config.json is missing"
        assert models.record_damage(session, model, None)
        assert not models.record_damage(session, model, None)


# --- what nobody needs ---


def unneeded(database: Database, *artifacts: str) -> set[str]:
    with database.session_across_teams() as session:
        return models.unneeded(session, artifacts, deleted_seconds=KEPT_SECONDS)


def artifact_of(database: Database, model: str) -> str:
    with database.session_across_teams() as session:
        return session.scalars(select(Model.artifact).where(Model.id == model)).one()


def test_a_models_folder_is_needed_until_it_has_been_deleted_for_a_while(database: Database, model: str) -> None:
    artifact = artifact_of(database, model)
    assert unneeded(database, artifact) == set()

    delete(database, model)
    assert unneeded(database, artifact) == set()

    with database.session_across_teams() as session:
        session.get_one(Model, model).deleted_at = func.clock_timestamp() - text("interval '61 seconds'")
    assert unneeded(database, artifact) == {artifact}


@pytest.mark.parametrize("state", ["queued", "paused", "succeeded", "failed", "cancelled"])
def test_what_an_attempt_that_is_over_has_published_is_not_needed(database: Database, state: str) -> None:
    job_id = add_job(database, state)
    made = {f"{job_id}-1"} if state == "succeeded" else set()

    assert unneeded(database, f"{job_id}-1", f"{job_id}-0") == {f"{job_id}-1", f"{job_id}-0"} - made


def test_what_a_running_attempt_has_published_is_needed_and_what_the_one_before_has_is_not(database: Database) -> None:
    job_id = add_job(database, "running")
    with database.session_across_teams() as session:
        attempts.requeue(session, job_id, 1, "The worker is shutting down")
        assert attempts.start(session, job_id, 2, "worker-2") is not None

    assert unneeded(database, f"{job_id}-1", f"{job_id}-2") == {f"{job_id}-1"}


@pytest.mark.parametrize("artifact", ["ftjob-unknown-1", "lost+found", "model", ""])
def test_what_no_job_has_made_is_left_alone(database: Database, artifact: str) -> None:
    assert unneeded(database, artifact) == set()


def test_a_model_that_is_made_between_the_two_looks_is_needed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = add_job(database, "running")
    look = models._of_attempts_that_are_over

    def look_and_publish(session: Any, artifacts: Any) -> set[str]:
        over = look(session, artifacts)
        with database.session_across_teams() as other:
            succeed(other, job_id)
        return over

    monkeypatch.setattr(models, "_of_attempts_that_are_over", look_and_publish)

    assert unneeded(database, f"{job_id}-1") == set()
    assert job_of(database, job_id).state == "succeeded"


# --- attempts on a disk that fails ---


def test_an_attempt_on_a_failing_disk_is_tried_again_and_then_paused(database: Database) -> None:
    job_id = add_job(database, "running")
    for attempt in range(1, job_moves.MOST_CRASHES):
        with database.session_across_teams() as session:
            attempts.disk_failed(session, job_id, attempt, "The disk failed")
        assert job_of(database, job_id).state == "queued"
        with database.session_across_teams() as session:
            assert attempts.start(session, job_id, attempt + 1, "worker-1") is not None
    with database.session_across_teams() as session:
        attempts.disk_failed(session, job_id, job_moves.MOST_CRASHES, "The disk failed")

    assert job_of(database, job_id).state == "paused"
