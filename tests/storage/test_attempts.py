from __future__ import annotations

import pytest

from storage import attempts, job_moves
from storage.database import Database
from storage.job_moves import Death
from tests.storage.rows import add_job, events_of, expire_lease, job_of, lease_of, rescue

CRASH = "The training process was killed by SIGSEGV"


def die(database: Database, job_id: str, *deaths: Death) -> None:
    """Let the job's attempts die one after the other, as long as there are any."""
    for death in deaths:
        attempt = job_of(database, job_id).attempt
        with database.session_across_teams() as session:
            if job_of(database, job_id).state == "queued":
                assert attempts.start(session, job_id, attempt, f"worker-{attempt}") is not None
            attempts.died(session, job_id, attempt, death)


def error_of(database: Database, job_id: str) -> tuple[str, str]:
    error = job_of(database, job_id).error
    assert error is not None
    return error["code"], error["message"]


def test_an_attempt_that_dies_is_followed_by_another_and_an_event_says_where_it_was(database: Database) -> None:
    job_id = add_job(database, "running")

    die(database, job_id, Death(CRASH, 7))

    job = job_of(database, job_id)
    assert (job.state, job.attempt, job.crashes, job.oom_kills) == ("queued", 2, 1, 0)
    assert events_of(database, job_id)[-1].message.startswith(f"{CRASH} after step 7; the job is queued again")


def test_a_job_that_dies_twice_after_the_same_step_is_set_aside(database: Database) -> None:
    job_id = add_job(database)

    die(database, job_id, Death(CRASH, 7), Death(CRASH, 7))

    assert job_of(database, job_id).state == "failed"
    code, message = error_of(database, job_id)
    assert code == "poisoned_job"
    assert "after step 7" in message


def test_a_job_whose_worker_falls_silent_twice_after_the_same_step_is_set_aside(database: Database) -> None:
    job_id = add_job(database)
    for attempt in (1, 2):
        with database.session_across_teams() as session:
            attempts.start(session, job_id, attempt, f"worker-{attempt}")
            told = {"step": 4, "total_steps": 9}
            step = {"step": 4, "loss": 0.5}
            attempts.record_steps(session, job_id, attempt, [step], progress=told, message="Step 4", news=told)
        expire_lease(database, job_id)
        assert rescue(database) == 1

    code, message = error_of(database, job_id)
    assert code == "poisoned_job"
    assert "worker-2 fell silent after step 4" in message


def test_a_job_that_somebody_kills_twice_at_one_place_is_tried_again(database: Database) -> None:
    job_id = add_job(database)

    die(database, job_id, *[Death("It was killed by SIGKILL", 7, from_outside=True)] * 2)

    assert (job_of(database, job_id).state, job_of(database, job_id).crashes) == ("queued", 2)


@pytest.mark.parametrize("step", [None, 7])
def test_a_job_whose_attempts_die_without_getting_further_fails(database: Database, step: int | None) -> None:
    job_id = add_job(database)
    first, *others = [Death("The worker fell silent", each) for each in (step, None, None)]

    die(database, job_id, first, *others)

    code, message = error_of(database, job_id)
    assert code == "worker_lost"
    assert f"{job_moves.MOST_CRASHES} of the {job_moves.MOST_CRASHES}" in message


def test_a_job_that_gets_further_each_time_is_tried_again_and_again(database: Database) -> None:
    job_id = add_job(database)

    die(database, job_id, *(Death(CRASH, 10 * n) for n in range(1, 3 * job_moves.MOST_CRASHES)))

    assert job_of(database, job_id).state == "queued"
    die(database, job_id, Death(CRASH, 3), Death(CRASH, 5))
    assert error_of(database, job_id)[0] == "worker_lost"


def test_deaths_for_lack_of_memory_are_counted_apart_and_fail_the_job_as_that(database: Database) -> None:
    job_id = add_job(database)
    kills = [Death("The kernel killed it for lack of memory", step, out_of_memory=True) for step in (None, None, None)]

    die(database, job_id, *kills)

    job = job_of(database, job_id)
    assert (job.state, job.crashes, job.oom_kills, job.preemptions) == ("failed", 0, 3, 0)
    code, message = error_of(database, job_id)
    assert code == "out_of_memory"
    assert "micro_batch_size" in message


def test_lack_of_memory_twice_after_the_same_step_is_told_as_that(database: Database) -> None:
    job_id = add_job(database)

    die(database, job_id, *[Death("The kernel killed it for lack of memory", 7, out_of_memory=True)] * 2)

    assert error_of(database, job_id)[0] == "out_of_memory"


def test_giving_a_job_back_spends_none_of_its_lives(database: Database) -> None:
    job_id = add_job(database, "queued")

    for attempt in range(1, 2 * job_moves.MOST_CRASHES):
        with database.session_across_teams() as session:
            assert attempts.start(session, job_id, attempt, "worker-1") is not None
        with database.session_across_teams() as session:
            attempts.requeue(session, job_id, attempt, "The worker is shutting down")

    job = job_of(database, job_id)
    assert (job.state, job.crashes, job.deaths_in_place, job.attempt) == ("queued", 0, 0, 2 * job_moves.MOST_CRASHES)
    assert job.preemptions == 2 * job_moves.MOST_CRASHES - 1


def test_what_a_worker_says_of_the_job_that_its_child_left_counts_for_its_own_job_only(database: Database) -> None:
    job_id, other = add_job(database, "running"), add_job(database)
    with database.session_across_teams() as session:
        attempts.start(session, other, 1, "worker-2")

    with database.session_across_teams() as session:
        assert attempts.abandoned(session, "worker-3", Death("The watcher was killed")) is None
        assert attempts.abandoned(session, "worker-1", Death("The watcher was killed")) == job_id

    assert [job_of(database, each).state for each in (job_id, other)] == ["queued", "running"]
    assert job_of(database, job_id).crashes == 1
    with database.session_across_teams() as session:
        assert attempts.abandoned(session, "worker-2", None) == other
    assert (job_of(database, other).crashes, job_of(database, other).preemptions) == (0, 1)
    assert lease_of(database, other) is None


def test_an_event_that_is_written_twice_under_one_key_is_there_once(database: Database) -> None:
    job_id = add_job(database, "running")

    for key in ("a", "a", "b", None, None):
        with database.session_across_teams() as session:
            attempts.record(session, job_id, 1, f"said under {key}", key=key)

    said = [event.message for event in events_of(database, job_id) if event.message.startswith("said")]
    assert said == ["said under a", "said under b", "said under None", "said under None"]
