from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from api_schemas.errors import LikenessError
from api_schemas.jobs import ENDED, JobCreate
from api_schemas.methods import Method
from storage import attempts, files, job_history, jobs, preparations, scheduling
from storage.database import Database
from storage.job_moves import Death
from storage.tables import JobMetrics, Model, OutboxMessage
from tests.storage.rows import (
    OTHER_TEAM,
    TEAM,
    UNUSABLE,
    USABLE,
    add_file,
    add_job,
    add_team,
    events_of,
    expire_lease,
    is_in_preparation,
    job_of,
    lease_of,
    prepare,
    rescue,
    succeed,
)

STATES = ("validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled")
STEP = {"step": 1, "loss": 0.5}

Action = Callable[[Session, str], object]


def record_step(session: Session, job_id: str, attempt: int = 1) -> None:
    attempts.record_steps(session, job_id, attempt, [STEP], progress={"step": 1}, message="Step 1", news={"step": 1})


#: What an attempt does, for attempt 1.
WRITES: dict[str, Action] = {
    "event": lambda session, job_id: attempts.record(session, job_id, 1, "Still here"),
    "metrics": record_step,
    "success": succeed,
    "failure": lambda session, job_id: attempts.fail(session, job_id, 1, "out_of_memory", "Memory ran out."),
    "requeue": lambda session, job_id: attempts.requeue(session, job_id, 1, "The worker is shutting down"),
    "crash": lambda session, job_id: attempts.died(session, job_id, 1, Death("The process was killed")),
    "pause": lambda session, job_id: attempts.pause_running(session, job_id, 1, "The disk is full"),
}

#: The state that each of them leads to from `running`.
LEADS_TO = {
    "event": "running", "metrics": "running", "success": "succeeded", "failure": "failed",
    "requeue": "queued", "crash": "queued", "pause": "paused",
}  # fmt: skip


@pytest.mark.parametrize("write", WRITES)
def test_a_running_attempt_may_write(database: Database, write: str) -> None:
    job_id = add_job(database, "running")

    with database.session_across_teams() as session:
        WRITES[write](session, job_id)

    assert job_of(database, job_id).state == LEADS_TO[write]


@pytest.mark.parametrize("state", [state for state in STATES if state != "running"])
def test_an_attempt_that_does_not_run_can_write_nothing(database: Database, state: str) -> None:
    job_id = add_job(database, state)
    before = snapshot(database, job_id)

    for write in WRITES.values():
        with pytest.raises(attempts.StaleAttempt), database.session_across_teams() as session:
            write(session, job_id)

    assert snapshot(database, job_id) == before


def test_an_attempt_whose_job_was_given_to_another_can_write_nothing(database: Database) -> None:
    job_id = add_job(database, "running")
    expire_lease(database, job_id)
    assert rescue(database) == 1
    with database.session_across_teams() as session:
        assert attempts.start(session, job_id, 2, "worker-2") is not None
    before = snapshot(database, job_id)

    for write in WRITES.values():
        with pytest.raises(attempts.StaleAttempt), database.session_across_teams() as session:
            write(session, job_id)

    assert snapshot(database, job_id) == before


@pytest.mark.parametrize(
    ("state", "attempt", "starts"),
    [(state, 1, state == "queued") for state in STATES] + [("queued", 0, False), ("queued", 2, False)],
)
def test_only_a_queued_attempt_starts(database: Database, state: str, attempt: int, starts: bool) -> None:
    job_id = add_job(database, state)
    before = snapshot(database, job_id)

    with database.session_across_teams() as session:
        started = attempts.start(session, job_id, attempt, "worker-2")

    assert (started is not None) is starts
    if starts:
        assert job_of(database, job_id).worker_id == "worker-2"
    else:
        assert snapshot(database, job_id) == before


def test_a_job_that_nobody_knows_does_not_start(database: Database) -> None:
    with database.session_across_teams() as session:
        assert attempts.start(session, "ftjob-unknown", 1, "worker-1") is None


@pytest.mark.parametrize("state", ["validating_files", "queued", "running", "paused", "cancelled"])
def test_a_job_that_has_not_ended_can_be_cancelled(database: Database, state: str) -> None:
    job_id = add_job(database, state)

    with database.session(TEAM) as session:
        jobs.cancel(session, job_id)

    job = job_of(database, job_id)
    assert (job.state, lease_of(database, job_id)) == ("cancelled", None)
    assert job.finished_at is not None
    assert [event.message for event in events_of(database, job_id)].count("Job cancelled") == 1


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_a_job_that_has_ended_stays_as_it_is(database: Database, state: str) -> None:
    job_id = add_job(database, state)
    before = snapshot(database, job_id)

    with pytest.raises(LikenessError) as refusal, database.session(TEAM) as session:
        jobs.cancel(session, job_id)

    assert refusal.value.code == "job_already_ended"
    assert snapshot(database, job_id) == before


def test_another_teams_job_can_neither_be_read_nor_moved(database: Database) -> None:
    add_team(database)
    job_id = add_job(database)

    for action in (jobs.get, jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(LikenessError) as refusal, database.session(OTHER_TEAM) as session:
            action(session, job_id)
        assert refusal.value.code == "not_found"
    with database.session(OTHER_TEAM) as session:
        assert job_history.events(session, job_id, after_seq=None, limit=10, newest_first=False) == ([], False)


def test_success_makes_one_model_in_the_same_commit(database: Database) -> None:
    job_id = add_job(database, "running")

    with database.session_across_teams() as session:
        succeed(session, job_id)

    job = job_of(database, job_id)
    with database.session(TEAM) as session:
        model = session.scalars(select(Model)).one()
    assert (job.fine_tuned_model, job.trained_tokens) == (model.id, 100)
    assert model.id == f"ft:tiny/bert:{TEAM}::{job_id.removeprefix('ftjob-')[:12]}"


def test_a_failure_keeps_its_reason(database: Database) -> None:
    job = job_of(database, add_job(database, "failed"))

    assert job.error is not None
    assert (job.error["code"], job.error["message"]) == ("out_of_memory", "Memory ran out.")


# --- pausing ---


@pytest.mark.parametrize("state", ["validating_files", "queued"])
def test_a_job_without_a_worker_pauses_at_once_and_goes_on_where_it_was(database: Database, state: str) -> None:
    job_id = add_job(database, state)

    for _ in range(2):
        with database.session(TEAM) as session:
            assert jobs.pause(session, job_id).state == "paused"
    assert is_paused_for_everybody(database, job_id)
    for _ in range(2):
        with database.session(TEAM) as session:
            assert jobs.resume(session, job_id).state == state

    messages = [event.message.partition(".")[0] for event in events_of(database, job_id)]
    assert messages.count("Job paused") == 1
    assert sum(message.startswith("Job resumed") for message in messages) == 1


def is_paused_for_everybody(database: Database, job_id: str) -> bool:
    assert rescue(database) == 0
    with database.session_across_teams() as session:
        waiting = [*scheduling.waiting(session, "gpu"), *scheduling.waiting(session, "cpu")]
        started = attempts.start(session, job_id, 1, "worker-1")
        return started is None and all(job_id not in task.arguments for task in waiting)


def test_a_job_resumed_after_its_files_were_validated_is_prepared(database: Database) -> None:
    file_id = add_file(database, verdict=None)
    job_id = add_job(database, "validating_files", training_file=file_id)
    with database.session(TEAM) as session:
        jobs.pause(session, job_id)
    with database.session_across_teams() as session:
        files.record_verdict(session, file_id, USABLE)
        preparations.release_waiting_for(session, file_id)
    assert not is_in_preparation(database, job_id)

    with database.session(TEAM) as session:
        jobs.resume(session, job_id)

    assert is_in_preparation(database, job_id)


def test_a_job_paused_in_preparation_is_prepared_again(database: Database) -> None:
    job_id = add_job(database, "validating_files", training_file=add_file(database))
    assert is_in_preparation(database, job_id)
    with database.session(TEAM) as session:
        jobs.pause(session, job_id)
    prepare(database, job_id)  # too late
    assert job_of(database, job_id).state == "paused"

    with database.session(TEAM) as session:
        jobs.resume(session, job_id)

    assert is_in_preparation(database, job_id)
    with database.session_across_teams() as session:
        tasks = session.scalars(select(OutboxMessage.task).order_by(OutboxMessage.id)).all()
    assert [task for task in tasks if task == "workers.tasks.prepare"] == ["workers.tasks.prepare"] * 2


@pytest.mark.parametrize("end", ["requeue", "crash", "lease"])
def test_a_running_job_pauses_when_its_attempt_ends_however_that_is(database: Database, end: str) -> None:
    job_id = add_job(database, "running")
    with database.session(TEAM) as session:
        assert jobs.pause(session, job_id).state == "running"

    if end == "lease":
        expire_lease(database, job_id)
        rescue(database)
    else:
        with database.session_across_teams() as session:
            WRITES[end](session, job_id)

    paused = job_of(database, job_id)
    assert (paused.state, paused.pause_asked, lease_of(database, job_id)) == ("paused", False, None)
    with database.session(TEAM) as session:
        resumed = jobs.resume(session, job_id)
    assert (resumed.state, resumed.attempt) == ("queued", 2)


def test_a_pause_that_was_only_asked_for_can_be_taken_back(database: Database) -> None:
    job_id = add_job(database, "running")
    with database.session(TEAM) as session:
        jobs.pause(session, job_id)
        jobs.resume(session, job_id)

    with database.session_across_teams() as session:
        attempts.requeue(session, job_id, 1, "The worker is shutting down")
    assert job_of(database, job_id).state == "queued"


@pytest.mark.parametrize("state", sorted(ENDED))
@pytest.mark.parametrize("action", [jobs.pause, jobs.resume])
def test_a_job_that_has_ended_can_neither_be_paused_nor_resumed(database: Database, state: str, action: Any) -> None:
    job_id = add_job(database, state)
    before = snapshot(database, job_id)

    with pytest.raises(LikenessError) as refusal, database.session(TEAM) as session:
        action(session, job_id)

    assert refusal.value.code == "job_already_ended"
    assert snapshot(database, job_id) == before


# --- events ---


def test_numbers_of_events_have_no_gaps_when_many_write_at_once(database: Database) -> None:
    job_id = add_job(database, "running")
    together = threading.Barrier(4)
    refused: list[Exception] = []

    def write(writer: int) -> None:
        together.wait(timeout=30)
        for number in range(15):
            try:
                with database.session_across_teams() as session:
                    attempts.record(session, job_id, 1, f"{writer}: {number}")
            except Exception as error:
                refused.append(error)
                raise

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()

    events = events_of(database, job_id)
    assert refused == []
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    for writer in range(4):
        own = [event.message for event in events if event.message.startswith(f"{writer}: ")]
        assert own == [f"{writer}: {number}" for number in range(15)]


def test_an_event_that_is_rolled_back_leaves_no_gap(database: Database) -> None:
    job_id = add_job(database, "running")
    with database.session_across_teams() as session:
        attempts.record(session, job_id, 1, "never written")
        session.flush()
        session.get_transaction().rollback()

    with database.session_across_teams() as session:
        attempts.record(session, job_id, 1, "written")

    events = events_of(database, job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[-1].message == "written"


def test_steps_written_twice_are_there_once_with_one_event(database: Database) -> None:
    job_id = add_job(database, "running")

    for _ in range(2):
        with database.session_across_teams() as session:
            record_step(session, job_id)

    with database.session(TEAM) as session:
        assert job_history.metrics(session, jobs.get(session, job_id), max_points=1000) == [STEP]
    assert [event.type for event in events_of(database, job_id)].count("metrics") == 1


def test_of_many_steps_the_ends_and_the_extremes_are_given_and_all_are_counted(database: Database) -> None:
    job_id = add_job(database, "running")
    losses = [2.0 + (step * 37 % 101) / 101 for step in range(1, 501)]
    losses[122], losses[345] = 9.0, 0.5
    steps = [
        {**STEP, "step": step, "loss": loss, "seconds": 0.5, "pairs_per_second": 4.0 * (1 + step % 2)}
        for step, loss in enumerate(losses, start=1)
    ]
    with database.session_across_teams() as session:
        attempts.record_steps(session, job_id, 1, steps, progress={}, message="Steps", news={})

    with database.session(TEAM) as session:
        job = jobs.get(session, job_id)
        chosen = job_history.metrics(session, job, max_points=20)
        assert len(job_history.metrics(session, job, max_points=500)) == 500
        assert job_history.rates(session, job)[:2] == (500, 6.0)
    numbers = [step["step"] for step in chosen]
    assert numbers == sorted(set(numbers))
    assert 10 <= len(numbers) <= 20
    assert {1, 123, 346, 500} <= set(numbers)


def test_a_step_that_several_attempts_took_is_measured_by_the_newest(database: Database) -> None:
    job_id = add_job(database, "running")
    first, second, again = {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}, {"step": 2, "loss": 0.3}

    def record_steps(session: Session, attempt: int, *steps: dict[str, Any]) -> None:
        attempts.record_steps(session, job_id, attempt, steps, progress={}, message="", news={})

    with database.session_across_teams() as session:
        record_steps(session, 1, first, second)
        attempts.requeue(session, job_id, 1, "The worker is shutting down")
    with database.session_across_teams() as session:
        attempts.start(session, job_id, 2, "worker-2")
        record_steps(session, 2, again)

    with database.session(TEAM) as session:
        assert job_history.metrics(session, jobs.get(session, job_id), max_points=1000) == [first, again]


def test_events_can_be_read_in_pages_from_both_ends(database: Database) -> None:
    job_id = add_job(database, "succeeded")
    numbers = [event.seq for event in events_of(database, job_id)]

    with database.session(TEAM) as session:
        first, more = job_history.events(session, job_id, after_seq=None, limit=2, newest_first=False)
        rest, no_more = job_history.events(session, job_id, after_seq=first[-1].seq, limit=1000, newest_first=False)
        newest, _ = job_history.events(session, job_id, after_seq=None, limit=1000, newest_first=True)

    assert (more, no_more) == (True, False)
    assert [event.seq for event in (*first, *rest)] == numbers
    assert [event.seq for event in newest] == numbers[::-1]


# --- validation ---


def validate(database: Database, file_id: str, verdict: files.Verdict) -> None:
    with database.session_across_teams() as session:
        files.record_verdict(session, file_id, verdict)
        preparations.release_waiting_for(session, file_id)


def test_a_job_on_validated_files_is_prepared_at_once_and_then_queued(database: Database) -> None:
    job_id = add_job(database, "validating_files", training_file=add_file(database))
    assert is_in_preparation(database, job_id)

    prepare(database, job_id)
    job = job_of(database, job_id)
    assert (job.state, job.attempt) == ("queued", 1)
    hyperparameters = job.method["contrastive"]["hyperparameters"]
    # What the trainer resolves: it takes the encoder on its machine.
    assert {name for name, value in hyperparameters.items() if value == "auto"} == {"micro_batch_size", "precision"}
    assert not is_in_preparation(database, job_id)


def test_what_a_job_does_not_ask_for_is_not_written_with_it(database: Database) -> None:
    """A worker of the version before refuses options that it doesn't know."""
    options = {"loss": {"symmetric": False}, "hyperparameters": {"max_steps": None}, "model": {"pooling": "cls"}}
    asked = Method.model_validate({"contrastive": options})

    stored = asked.stored()

    assert Method(**stored) == asked
    assert stored["contrastive"]["loss"]["symmetric"] is False
    assert stored["contrastive"]["model"]["pooling"] == "cls"
    assert {"scratch", "adapter"}.isdisjoint(stored["contrastive"]["model"])
    job_id = add_job(database, "validating_files", training_file=add_file(database))
    prepare(database, job_id)
    written = job_of(database, job_id).method
    assert written == Method(**written).stored()


@pytest.mark.parametrize("state", [state for state in STATES if state != "validating_files"])
def test_a_preparation_that_ends_too_late_changes_nothing(database: Database, state: str) -> None:
    job_id = add_job(database, state)
    before = events_of(database, job_id)

    prepare(database, job_id)
    with database.session_across_teams() as session:
        preparations.refuse(session, job_id, "invalid_value", "No batch can be formed.")
        preparations.record(session, job_id, "Tokenized 10,000 rows")

    assert job_of(database, job_id).state == state
    assert len(events_of(database, job_id)) == len(before)


def test_a_job_that_cannot_be_prepared_fails_with_the_reason(database: Database) -> None:
    job_id = add_job(database, "validating_files", training_file=add_file(database))

    with database.session_across_teams() as session:
        preparations.refuse(session, job_id, "invalid_value", "No batch can be formed.")

    job = job_of(database, job_id)
    assert job.error is not None
    assert (job.state, job.attempt, job.error["message"]) == ("failed", 0, "No batch can be formed.")


def test_what_a_job_says_of_its_data_lets_it_use_a_file_that_nobody_could_read(database: Database) -> None:
    file_id = add_file(database, verdict=UNUSABLE)
    told = {"contrastive": {"data": {"columns": {"anchor": "title", "positive": "body"}}}}

    assert is_in_preparation(database, add_job(database, "validating_files", training_file=file_id, method=told))
    assert not is_in_preparation(database, add_job(database, "validating_files", training_file=file_id))


def test_a_job_waits_until_all_its_files_are_validated(database: Database) -> None:
    training, validation = (add_file(database, verdict=None) for _ in range(2))
    job_id = add_job(database, "validating_files", training_file=training, validation_file=validation)

    validate(database, training, USABLE)
    assert not is_in_preparation(database, job_id)
    validate(database, validation, USABLE)
    assert is_in_preparation(database, job_id)


@pytest.mark.parametrize("role", ["training_file", "validation_file"])
def test_a_job_on_an_unusable_file_fails_with_the_files_reason(database: Database, role: str) -> None:
    file_id = add_file(database, verdict=None)
    job_id = add_job(database, "validating_files", **{"training_file": add_file(database), role: file_id})

    validate(database, file_id, UNUSABLE)

    job = job_of(database, job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert (job.error["code"], job.error["message"]) == ("file_invalid", "rows.jsonl: 1 row was refused.")


def test_a_queued_job_says_what_auto_stands_for(database: Database) -> None:
    losses = [job_of(database, add_job(database, method=_loss(name))).method for name in ("ntxent", "supcon")]

    told = [{key: method["contrastive"]["loss"][key] for key in ("temperature", "reduction")} for method in losses]
    assert told == [{"temperature": 0.05, "reduction": "pair"}, {"temperature": 0.05, "reduction": "anchor"}]


def test_a_learnable_temperature_stays_learnable(database: Database) -> None:
    job = job_of(database, add_job(database, method={"contrastive": {"loss": {"temperature": "learnable"}}}))
    assert job.method["contrastive"]["loss"]["temperature"] == "learnable"


def _loss(name: str) -> dict[str, Any]:
    return {"contrastive": {"loss": {"name": name}}}


def test_a_second_verdict_releases_nothing_twice(database: Database) -> None:
    file_id = add_file(database, verdict=None)
    job_id = add_job(database, "validating_files", training_file=file_id)

    for _ in range(2):
        validate(database, file_id, USABLE)

    assert is_in_preparation(database, job_id)
    assert len(events_of(database, job_id)) == 2


@pytest.mark.parametrize(("verdict", "goes_on"), [(USABLE, True), (UNUSABLE, False)])
def test_a_verdict_that_falls_while_a_job_is_created_is_not_missed(
    database: Database, verdict: files.Verdict, goes_on: bool
) -> None:
    file_id = add_file(database, verdict=None)

    with database.session(TEAM) as session:
        training = files.get(session, file_id)
        validate(database, file_id, verdict)
        request = JobCreate(model="tiny/bert", training_file=file_id)
        job_id = jobs.create(session, request, training, None, max_seq_length=48).id

    assert is_in_preparation(database, job_id) is goes_on
    assert goes_on or job_of(database, job_id).state == "failed"


def test_a_verdict_waits_for_a_job_that_is_being_created(database: Database) -> None:
    file_id = add_file(database, verdict=None)
    verdict = threading.Thread(target=validate, args=(database, file_id, USABLE))

    with database.session(TEAM) as session:
        training = files.get(session, file_id)
        request = JobCreate(model="tiny/bert", training_file=file_id)
        job_id = jobs.create(session, request, training, None, max_seq_length=48).id
        verdict.start()
        while not somebody_waits_for_a_lock(database):
            assert verdict.is_alive()
    verdict.join()

    assert is_in_preparation(database, job_id)


def test_jobs_are_found_by_their_metadata(database: Database) -> None:
    found, _ = (add_job(database, metadata={"run": run, "by": "me"}) for run in ("one", "two"))

    with database.session(TEAM) as session:
        rows, more = jobs.list_jobs(session, metadata={"run": "one"}, after=None, limit=10)

    assert ([row.id for row in rows], more) == ([found], False)


def somebody_waits_for_a_lock(database: Database) -> bool:
    with database.session_across_teams() as session:
        return bool(session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def snapshot(database: Database, job_id: str) -> object:
    """All that is known of a job: its row, its events, its metrics, the models and the outbox."""
    with database.session_across_teams() as session:
        job = session.scalar(text("SELECT to_jsonb(jobs) FROM jobs WHERE id = :id"), {"id": job_id})
        events = session.scalar(text("SELECT count(*) FROM job_events WHERE job_id = :id"), {"id": job_id})
        counts = [
            session.scalar(select(func.count()).select_from(table)) for table in (JobMetrics, Model, OutboxMessage)
        ]
    return job, events, counts


def test_states_are_those_of_the_wire() -> None:
    assert set(STATES) > ENDED
