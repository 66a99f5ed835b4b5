from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis
from sqlalchemy import text

from storage import attempts, jobs, queue, scheduling
from storage.claims import claimed
from storage.database import Database
from storage.tables import Job
from tests.storage.rows import TEAM, add_file, add_job, add_team, expire_lease, job_of, prepare


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with queue.connect(redis_url) as connection:
        yield connection


@pytest.fixture
def other(database: Database) -> str:
    return add_team(database)


def add_jobs(database: Database, number: int, *, team: str = TEAM) -> list[str]:
    file_id = add_file(database, team=team)
    return [add_job(database, team=team, training_file=file_id) for _ in range(number)]


def take(database: Database) -> Job:
    job = scheduling.take(database, "worker-1")
    assert job is not None
    return job


def end(database: Database, job: Job) -> None:
    with database.session_across_teams() as session:
        attempts.fail(session, job.id, job.attempt, "out_of_memory", "Memory ran out.")


def taken_one_by_one(database: Database, number: int) -> list[Job]:
    """The jobs that one worker gets, which ends each before it asks for the next."""
    taken = []
    for _ in range(number):
        taken.append(take(database))
        end(database, taken[-1])
    return taken


def teams_of(taken: list[Job]) -> list[str]:
    return [job.team_id for job in taken]


def make_older(database: Database, job_id: str, age: str) -> None:
    with database.session_across_teams() as session:
        older = text("UPDATE jobs SET created_at = created_at - CAST(:age AS interval) WHERE id = :id")
        session.execute(older, {"age": age, "id": job_id})


# --- between teams ---


def test_a_teams_one_job_does_not_wait_for_another_teams_hundred(database: Database, other: str) -> None:
    hundred = add_jobs(database, 100)
    assert taken_one_by_one(database, 2)[-1].id == hundred[1]
    [one] = add_jobs(database, 1, team=other)

    assert take(database).id == one


def test_a_team_whose_jobs_fill_the_workers_waits_for_one_that_has_none(database: Database, other: str) -> None:
    add_jobs(database, 10)
    running = [take(database) for _ in range(4)]
    ones = add_jobs(database, 2, team=other)

    freed = []
    for job in running[:3]:  # as its worker does, which is then free for the next
        end(database, job)
        freed.append(take(database))

    assert [job.id for job in freed[:2]] == ones
    assert freed[2].team_id == TEAM


def test_teams_take_turns_whatever_the_number_of_their_jobs(database: Database, other: str) -> None:
    third = add_team(database, "third")
    for team, number in ((TEAM, 4), (other, 2), (third, 1)):
        add_jobs(database, number, team=team)

    assert teams_of(taken_one_by_one(database, 7)) == [TEAM, other, third, TEAM, other, TEAM, TEAM]


def test_a_team_that_had_the_machine_for_itself_has_no_debts(database: Database, other: str) -> None:
    add_jobs(database, 10)
    taken_one_by_one(database, 5)
    add_jobs(database, 5, team=other)

    assert Counter(teams_of(taken_one_by_one(database, 6))) == {TEAM: 3, other: 3}


def test_workers_that_ask_at_once_get_different_jobs_and_as_many_of_each_team(database: Database, other: str) -> None:
    for team in (TEAM, other):
        add_jobs(database, 6, team=team)
    together = threading.Barrier(6)

    def ask(_: int) -> Job:
        own = Database(database.engine.url.render_as_string(hide_password=False), pool_size=1)
        together.wait(timeout=60)
        try:
            return take(own)
        finally:
            own.dispose()

    with ThreadPoolExecutor(6) as workers:
        taken = list(workers.map(ask, range(6)))

    assert len({job.id for job in taken}) == 6
    assert Counter(teams_of(taken)) == {TEAM: 3, other: 3}


def test_a_job_that_is_cancelled_while_a_worker_takes_it_makes_room_for_the_next(database: Database) -> None:
    first, second = add_jobs(database, 2)

    with ThreadPoolExecutor(1) as worker, database.session(TEAM) as session:
        jobs.cancel(session, first)
        taken = worker.submit(take, database)
        while not somebody_waits_for_a_row(database):
            assert not taken.done()
        session.commit()
        assert taken.result().id == second


def somebody_waits_for_a_row(database: Database) -> bool:
    with database.session_across_teams() as session:
        return bool(session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


@pytest.mark.parametrize("state", ["validating_files", "running", "paused", "succeeded", "failed", "cancelled"])
def test_nothing_is_taken_unless_it_is_queued(database: Database, state: str) -> None:
    job_id = add_job(database, state)

    assert scheduling.take(database, "worker-2") is None
    assert job_of(database, job_id).state == state


# --- among a team's own jobs ---


def test_a_teams_jobs_go_by_priority_and_then_by_age(database: Database) -> None:
    file_id = add_file(database)
    asked = ("low", "normal", "high", "normal", "high", "low")
    made = [add_job(database, training_file=file_id, priority=priority) for priority in asked]

    taken = taken_one_by_one(database, 6)

    assert [made.index(job.id) for job in taken] == [2, 4, 1, 3, 0, 5]


def test_a_high_priority_does_not_move_a_job_before_another_teams(database: Database, other: str) -> None:
    hers = add_job(database, team=other, priority="low")
    for _ in range(3):
        add_job(database, priority="high")

    taken = taken_one_by_one(database, 2)

    assert hers in [job.id for job in taken]


@pytest.mark.parametrize(("age", "first"), [("23 hours", "high"), ("25 hours", "normal")])
def test_a_job_that_has_waited_for_a_day_goes_before_newer_ones_of_higher_priority(
    database: Database, age: str, first: str
) -> None:
    made = {priority: add_job(database, priority=priority) for priority in ("low", "normal", "high")}
    for priority in ("low", "normal"):
        make_older(database, made[priority], age)

    assert take(database).id == made[first]


def test_an_interrupted_job_goes_on_before_all_others(database: Database, other: str) -> None:
    add_jobs(database, 2)
    interrupted = take(database)
    add_jobs(database, 1, team=other)
    with database.session_across_teams() as session:
        attempts.requeue(session, interrupted.id, 1, "The worker is shutting down")

    again = take(database)

    assert (again.id, again.attempt) == (interrupted.id, 2)
    assert take(database).team_id == other


def test_a_job_whose_worker_fell_silent_goes_on_before_all_others(database: Database, other: str) -> None:
    lost, _ = add_jobs(database, 1) + add_jobs(database, 1, team=other)
    take(database)
    expire_lease(database, lost)
    with database.session_across_teams() as session:
        assert attempts.rescue(session, lost, 1)

    assert take(database).id == lost


def test_pausing_and_resuming_does_not_move_a_job_before_other_teams(database: Database, other: str) -> None:
    paused = add_jobs(database, 3)[0]
    take(database)
    with database.session(TEAM) as session:
        jobs.pause(session, paused)
    with database.session_across_teams() as session:
        attempts.requeue(session, paused, 1, "The worker is shutting down")
    [hers] = add_jobs(database, 1, team=other)
    with database.session(TEAM) as session:
        jobs.resume(session, paused)

    assert take(database).id == hers
    assert take(database).id == paused  # which is older than the team's other jobs


def test_a_team_is_told_the_places_of_its_own_queued_jobs_only(database: Database, other: str) -> None:
    file_id = add_file(database)
    hers = add_jobs(database, 3, team=other)
    add_job(database, "paused", training_file=file_id)
    low, normal, high = (
        add_job(database, training_file=file_id, priority=priority) for priority in ("low", "normal", "high")
    )

    with database.session(TEAM) as session:
        assert scheduling.positions(session) == {high: 1, normal: 2, low: 3}
    with database.session(other) as session:
        assert scheduling.positions(session) == {hers[0]: 1, hers[1]: 2, hers[2]: 3}


# --- files and preparations ---


def claim_and_finish(database: Database) -> queue.Task:
    """What one worker does with what is next."""
    with scheduling.claim(database) as task:
        assert task is not None
        if task.name == queue.PREPARE:
            prepare(database, str(task.arguments[0]))
        else:
            add_verdict(database, str(task.arguments[0]))
    return task


def add_verdict(database: Database, file_id: str) -> None:
    with database.session_across_teams() as session:
        session.execute(text("UPDATE files SET status = 'processed' WHERE id = :id"), {"id": file_id})


def test_a_teams_one_upload_does_not_wait_for_another_teams_hundred(database: Database, other: str) -> None:
    hundred = [add_file(database, verdict=None) for _ in range(100)]
    one = add_file(database, team=other, verdict=None)

    done = [claim_and_finish(database) for _ in range(3)]

    assert [task.arguments for task in done] == [[hundred[0]], [one], [hundred[1]]]


def test_a_team_whose_files_are_being_read_waits_for_one_that_has_none_under_way(
    database: Database, other: str
) -> None:
    files = [add_file(database, verdict=None) for _ in range(3)]

    with scheduling.claim(database) as first, scheduling.claim(database) as second:
        assert first is not None
        assert second is not None
        assert [*first.arguments, *second.arguments] == files[:2]
        theirs = [add_file(database, team=other, verdict=None) for _ in range(2)]
        with scheduling.claim(database) as third, scheduling.claim(database) as fourth:
            assert third is not None
            assert fourth is not None
            assert [*third.arguments, *fourth.arguments] == theirs
            with scheduling.claim(database) as fifth:
                assert fifth is not None
                assert fifth.arguments == files[2:]
                with scheduling.claim(database) as sixth:
                    assert sixth is None


def test_a_job_that_waits_for_its_preparation_goes_before_files_that_were_only_uploaded(database: Database) -> None:
    uploaded = add_file(database, verdict=None)
    file_id = add_file(database)
    normal, high = (
        add_job(database, "validating_files", training_file=file_id, priority=priority)
        for priority in ("normal", "high")
    )

    with database.session_across_teams() as session:
        session.execute(text("UPDATE jobs SET validated = true"))
    done = [claim_and_finish(database) for _ in range(3)]

    assert [task.arguments for task in done] == [[high], [normal], [uploaded]]


def test_what_somebody_finished_just_before_it_was_claimed_is_not_done_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (add_file(database, verdict=None) for _ in range(2))
    look = scheduling._next

    def look_and_be_late(database: Database, name: queue.QueueName) -> object:
        found = look(database, name)
        add_verdict(database, first)
        return found

    monkeypatch.setattr(scheduling, "_next", look_and_be_late)
    with scheduling.claim(database) as task:
        assert task == queue.Task(queue.VALIDATE_FILE, [second])


# --- messages ---


def messages(redis: Redis, name: queue.QueueName) -> list[str]:
    """What the messages of a queue are about, next first."""
    return [message.decode().rpartition("-")[0] for message in redis.lrange(f"rq:queue:{name}", 0, -1)]


def test_an_emptied_valkey_gets_a_message_for_each_that_waits(database: Database, redis: Redis, other: str) -> None:
    queued = add_jobs(database, 3) + add_jobs(database, 2, team=other)
    uploaded = add_file(database, verdict=None)
    while queue.dispatch(database, redis):
        pass
    redis.flushdb()

    assert scheduling.enqueue_lost(database, redis) == 6
    assert scheduling.enqueue_lost(database, redis) == 0

    assert messages(redis, "gpu") == [f"train-{job_id}-1" for job_id in queued]
    assert messages(redis, "cpu") == [f"validate_file-{uploaded}"]


def test_what_is_still_in_the_outbox_is_not_lost(database: Database, redis: Redis) -> None:
    add_jobs(database, 3)

    assert scheduling.enqueue_lost(database, redis) == 0
    assert messages(redis, "gpu") == []


def test_a_message_that_led_to_another_job_leaves_as_many_as_there_are_jobs(
    database: Database, redis: Redis, other: str
) -> None:
    add_jobs(database, 3)
    taken_one_by_one(database, 1)
    [one] = add_jobs(database, 1, team=other)
    queue.dispatch(database, redis)
    redis.delete("rq:queue:gpu")
    scheduling.enqueue_lost(database, redis)
    redis.lpop("rq:queue:gpu")

    assert take(database).id == one

    assert scheduling.enqueue_lost(database, redis) == 0
    assert len(messages(redis, "gpu")) == 2


def test_a_message_that_is_lost_on_its_way_is_replaced_once_it_ought_to_have_arrived(
    database: Database, redis: Redis
) -> None:
    add_jobs(database, 2)
    queue.dispatch(database, redis)
    message = redis.lpop("rq:queue:gpu")
    redis.zadd("rq:wip:gpu", {message + b":1": "inf"})
    redis.hset(b"rq:execution:" + message + b":1", "created_at", time.time())
    assert scheduling.enqueue_lost(database, redis) == 0

    redis.hset(b"rq:execution:" + message + b":1", "created_at", time.time() - 60)
    assert scheduling.enqueue_lost(database, redis) == 1
    assert len(messages(redis, "gpu")) == 2


def test_strangers_entries_in_valkey_do_not_keep_lost_messages_from_being_replaced(
    database: Database, redis: Redis
) -> None:
    add_jobs(database, 1)
    queue.dispatch(database, redis)
    redis.flushdb()
    redis.zadd("rq:wip:gpu", {"text": 1, b"\xff:1": 1, "absent:1": 1})
    redis.set("rq:execution:text", "no hash")
    redis.hset(b"rq:execution:\xff:1", "created_at", "yesterday")

    assert scheduling.enqueue_lost(database, redis) == 1


def test_a_claim_is_seen_by_others_while_it_is_held(database: Database) -> None:
    file_id = add_file(database, verdict=None)

    with claimed(database, file_id), database.session_across_teams() as session:
        assert scheduling.waiting(session, "cpu") == []
    with database.session_across_teams() as session:
        assert scheduling.waiting(session, "cpu") == [queue.Task(queue.VALIDATE_FILE, [file_id])]
