from __future__ import annotations

import pytest

from storage import attempts, job_history, jobs
from storage.database import Database
from tests.storage.rows import TEAM, add_job, events_of, job_of
from workers.training import recorder as module
from workers.training.recorder import Attempt, Recorder
from workers.training.trainer import StepReport


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
    with monkeypatch.context() as away:
        away.setattr(recorder, "_database", Database("postgresql://postgres@/postgres?host=/nonexistent"))
        recorder.step(report(1))
        recorder.step(report(2))
    recorder.step(report(3))

    assert [step["step"] for step in metrics_of(database, job_id)] == [1, 2, 3]


def test_the_last_step_waits_for_a_database_that_is_away(
    database: Database, job_id: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.patience._PAUSE_SECONDS", 0.0)
    tries: list[int] = []
    write = recorder._write

    def away_twice() -> None:
        tries.append(1)
        if len(tries) < 3:
            Database("postgresql://postgres@/postgres?host=/nonexistent").ping()
        write()

    monkeypatch.setattr(recorder, "_write", away_twice)
    recorder.step(report(1, total_steps=1))

    assert [step["step"] for step in metrics_of(database, job_id)] == [1]
    assert len(tries) == 3
