from __future__ import annotations

from typing import Any

import pytest

from storage import attempts, job_history, jobs
from storage.database import Database
from tests.storage.rows import TEAM, add_job, events_of, job_of
from workers.shared_page import page_of_watcher
from workers.training import recorder as module
from workers.training.recorder import Attempt, Recorder
from workers.training.trainer import StepReport

AWAY = Database("postgresql://postgres@/postgres?host=/nonexistent", pool_size=1)


def report(step: int, *, total_steps: int = 100, seconds: float = 0.5, pairs_per_second: float = 20.0) -> StepReport:
    return StepReport(
        step=step, total_steps=total_steps, loss=1.0 / step, learning_rate=1e-3, grad_norm=1.0, seconds=seconds,
        pairs_per_second=pairs_per_second, tokens_per_second=100.0, positive_cosine=0.9, negative_cosine=0.1,
        accuracy=0.5, temperature=0.05, trained_tokens=50 * step,
    )  # fmt: skip


@pytest.fixture
def job_id(database: Database) -> str:
    return add_job(database, "running")


@pytest.fixture
def recorder(database: Database, job_id: str) -> Recorder:
    return Recorder(database, Attempt(job_id, 1))


def metrics_of(database: Database, job_id: str) -> list[dict[str, object]]:
    with database.session(TEAM) as session:
        return list(job_history.metrics(session, jobs.get(session, job_id), max_points=1000))


def test_what_is_said_is_an_event(database: Database, job_id: str, recorder: Recorder) -> None:
    recorder.say("Careful", level="warn")

    event = events_of(database, job_id)[-1]
    assert (event.message, event.level, event.type, event.attempt) == ("Careful", "warn", "message", 1)


def test_every_step_is_kept_and_the_last_writes_them_all(database: Database, job_id: str, recorder: Recorder) -> None:
    for step in range(1, 8):
        recorder.step(report(step, total_steps=7))

    assert [step["step"] for step in metrics_of(database, job_id)] == list(range(1, 8))
    assert [event.type for event in events_of(database, job_id)].count("metrics") == 1


def test_steps_are_written_together_now_and_then(
    database: Database, job_id: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.step(report(1))
    recorder.step(report(2))
    assert metrics_of(database, job_id) == []

    monkeypatch.setattr(module, "_WRITE_EVERY_SECONDS", 0.0)
    recorder.step(report(3))

    assert [step["step"] for step in metrics_of(database, job_id)] == [1, 2, 3]
    assert events_of(database, job_id)[-1].message == "Step 3/100: loss=0.3333"


def test_where_writing_takes_long_steps_are_written_less_often(
    database: Database, job_id: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WRITE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(module, "_WRITING_SHARE", 1e-9)
    recorder.step(report(1))
    recorder.step(report(2))
    assert [step["step"] for step in metrics_of(database, job_id)] == [1]

    monkeypatch.setattr(module, "_WRITING_SHARE", 1e9)
    recorder.step(report(3))
    assert [step["step"] for step in metrics_of(database, job_id)] == [1, 2, 3]


def test_progress_has_the_rates_of_all_steps_since_the_last_news(
    database: Database, job_id: str, recorder: Recorder
) -> None:
    recorder.step(report(9, seconds=1.0, pairs_per_second=10.0))
    recorder.step(report(10, seconds=3.0, pairs_per_second=30.0))
    recorder.flush()

    assert job_of(database, job_id).progress == {
        "step": 10,
        "total_steps": 100,
        "loss": 0.1,
        "pairs_per_second": 25.0,  # 100 pairs in 4 s
        "seconds_left": 180.0,  # 90 steps of 2 s
    }


def test_flushing_nothing_writes_nothing(database: Database, job_id: str, recorder: Recorder) -> None:
    before = len(events_of(database, job_id))

    recorder.flush()

    assert len(events_of(database, job_id)) == before


def test_nothing_is_written_after_the_job_was_cancelled(database: Database, job_id: str, recorder: Recorder) -> None:
    recorder.step(report(1))
    with database.session(TEAM) as session:
        jobs.cancel(session, job_id)

    with pytest.raises(attempts.StaleAttempt):
        recorder.say("Still here")
    with pytest.raises(attempts.StaleAttempt):
        recorder.flush()

    assert events_of(database, job_id)[-1].message == "Job cancelled"
    assert metrics_of(database, job_id) == []


def test_steps_taken_while_the_database_is_away_are_written_when_it_is_back(
    database: Database, job_id: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WRITE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(module, "_TRY_AGAIN_SECONDS", 0.0)
    with monkeypatch.context() as away:
        away.setattr(recorder, "_database", AWAY)
        recorder.step(report(1))
        recorder.step(report(2, total_steps=2))
    recorder.step(report(3))

    assert [step["step"] for step in metrics_of(database, job_id)] == [1, 2, 3]


def test_what_is_said_while_the_database_is_away_is_told_when_it_is_back_in_its_order(
    database: Database, job_id: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        away.setattr(recorder, "_database", AWAY)
        recorder.say("First")
        recorder.step(report(1))
        recorder.say("Second")
    recorder.flush()

    told = [event.message for event in events_of(database, job_id)][-3:]
    assert told == ["Step 1/100: loss=1.0000", "First", "Second"]


def test_what_was_written_although_the_answer_was_lost_is_not_written_again(
    database: Database, job_id: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = attempts.record

    def written_and_lost(*arguments: Any, **options: Any) -> None:
        with database.session_across_teams() as session:
            record(session, *arguments[1:], **options)
        AWAY.ping()

    with monkeypatch.context() as lost:
        lost.setattr(attempts, "record", written_and_lost)
        recorder.say("Once")
    recorder.flush()

    assert [event.message for event in events_of(database, job_id)].count("Once") == 1


def test_a_database_that_is_away_is_left_alone_for_a_while(
    database: Database, job_id: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WRITE_EVERY_SECONDS", 0.0)
    with monkeypatch.context() as away:
        away.setattr(recorder, "_database", AWAY)
        recorder.step(report(1))
    recorder.step(report(2))
    assert metrics_of(database, job_id) == []

    recorder.step(report(3, total_steps=3))

    assert [step["step"] for step in metrics_of(database, job_id)] == [1, 2, 3]


def test_whoever_watches_knows_the_last_step_before_the_database_does(recorder: Recorder) -> None:
    recorder.step(report(5))
    assert page_of_watcher().step == 5

    recorder.goes_on_from(3)
    assert page_of_watcher().step == 3


def test_the_end_waits_for_a_database_that_is_away(
    database: Database, job_id: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.patience._PAUSE_SECONDS", 0.0)
    tries: list[int] = []
    write = recorder._write

    def away_twice() -> None:
        tries.append(1)
        if len(tries) < 3:
            AWAY.ping()
        write()

    monkeypatch.setattr(recorder, "_write", away_twice)
    recorder.step(report(1))
    recorder.flush()

    assert [step["step"] for step in metrics_of(database, job_id)] == [1]
    assert len(tries) == 3
