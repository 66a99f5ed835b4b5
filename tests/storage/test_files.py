from __future__ import annotations

from typing import Any

import pytest

from api_schemas.errors import LikenessError
from api_schemas.jobs import JobCreate
from storage import files, jobs, queue, scheduling
from storage.database import Database
from tests.storage.rows import OTHER_TEAM, TEAM, UNUSABLE, USABLE, add_file, add_job, add_team, file_of


def test_a_new_file_waits_for_validation(database: Database) -> None:
    file_id = add_file(database, verdict=None)

    assert file_of(database, file_id).status == "uploaded"
    with database.session_across_teams() as session:
        assert scheduling.waiting(session, "cpu") == [queue.Task(queue.VALIDATE_FILE, [file_id])]


@pytest.mark.parametrize(("verdict", "status"), [(USABLE, "processed"), (UNUSABLE, "error")])
def test_a_verdict_ends_the_waiting(database: Database, verdict: files.Verdict, status: str) -> None:
    row = file_of(database, add_file(database, verdict=verdict))

    assert row.status == status
    assert (row.format, row.rows, row.error_count) == (verdict.format, verdict.rows, verdict.error_count)
    assert (row.errors, row.status_details) == (verdict.errors, verdict.summary)
    with database.session_across_teams() as session:
        assert scheduling.waiting(session, "cpu") == []


def test_the_first_verdict_stays(database: Database) -> None:
    file_id = add_file(database, verdict=USABLE)

    with database.session_across_teams() as session:
        assert not files.record_verdict(session, file_id, UNUSABLE)

    assert file_of(database, file_id).status == "processed"


def test_a_deleted_file_is_not_found_nor_listed_nor_validated(database: Database) -> None:
    file_id = add_file(database, verdict=None)
    with database.session(TEAM) as session:
        files.delete(session, file_id)

    with database.session(TEAM) as session:
        assert files.list_files(session, purpose=None, after=None, limit=10, order="desc") == ([], False)
        with pytest.raises(LikenessError) as refusal:
            files.get(session, file_id)
    assert refusal.value.code == "not_found"
    with database.session_across_teams() as session:
        assert scheduling.waiting(session, "cpu") == []


def test_another_teams_file_can_neither_be_read_nor_deleted(database: Database) -> None:
    add_team(database)
    file_id = add_file(database)

    for action in (files.get, files.delete):
        with pytest.raises(LikenessError) as refusal, database.session(OTHER_TEAM) as session:
            action(session, file_id)
        assert refusal.value.code == "not_found"


@pytest.mark.parametrize("state", ["validating_files", "queued", "running"])
@pytest.mark.parametrize("role", ["training_file", "validation_file", "additional_training_files"])
def test_a_file_that_a_job_reads_is_kept(database: Database, state: str, role: str) -> None:
    file_id = add_file(database, verdict=None if state == "validating_files" else USABLE)
    named: dict[str, Any] = {role: file_id}
    if role == "additional_training_files":
        named = {"method": {"contrastive": {"data": {role: [add_file(database), file_id]}}}}
    add_job(database, state, **{"training_file": add_file(database), **named})

    with pytest.raises(LikenessError) as refusal, database.session(TEAM) as session:
        files.delete(session, file_id)

    assert refusal.value.code == "file_in_use"


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_a_file_whose_jobs_have_ended_may_go(database: Database, state: str) -> None:
    file_id = add_file(database)
    add_job(database, state, training_file=file_id)

    with database.session(TEAM) as session:
        files.delete(session, file_id)

    with database.session(TEAM) as session, pytest.raises(LikenessError):
        files.get(session, file_id)


def test_no_job_begins_on_a_file_that_is_deleted_meanwhile(database: Database) -> None:
    file_id = add_file(database)
    request = JobCreate(model="tiny/bert", training_file=file_id)

    with database.session(TEAM) as session:
        training = files.get(session, file_id)
        with database.session(TEAM) as meanwhile:
            files.delete(meanwhile, file_id)
        with pytest.raises(LikenessError) as refusal:
            jobs.create(session, request, training, None, max_seq_length=48)

    assert refusal.value.code == "not_found"


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_hold_every_file_once_and_in_order(database: Database, order: str) -> None:
    made = [add_file(database) for _ in range(7)]
    seen: list[str] = []
    more = True
    while more:
        with database.session(TEAM) as session:
            rows, more = files.list_files(
                session, purpose="fine-tune", after=seen[-1] if seen else None, limit=3, order=order
            )
        seen += [row.id for row in rows]

    assert seen == (made if order == "asc" else made[::-1])


def test_a_cursor_of_another_team_names_nothing(database: Database) -> None:
    add_team(database)
    foreign = add_file(database, team=OTHER_TEAM)

    with pytest.raises(LikenessError) as refusal, database.session(TEAM) as session:
        files.list_files(session, purpose=None, after=foreign, limit=10, order="desc")

    assert refusal.value.code == "invalid_cursor"
