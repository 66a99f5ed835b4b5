from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue
from rq.job import Job as QueuedTask
from rq.serializers import JSONSerializer
from sqlalchemy import func, select

from storage import queue
from storage.database import Database
from storage.embedded import start_valkey
from storage.tables import OutboxMessage
from tests.storage.rows import TEAM, add_file, add_job, job_of


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with queue.connect(redis_url) as connection:
        yield connection


def waiting(redis: Redis, name: queue.QueueName) -> list[str]:
    """What the messages in a queue are about, next first."""
    return [message_id.rpartition("-")[0] for message_id in message_ids(redis, name)]


def message_ids(redis: Redis, name: queue.QueueName) -> list[str]:
    return Queue(name, connection=redis, serializer=JSONSerializer).job_ids


def outbox(database: Database) -> int:
    with database.session_across_teams() as session:
        return session.scalar(select(func.count()).select_from(OutboxMessage)) or 0


def test_what_is_committed_is_dispatched_once(database: Database, redis: Redis) -> None:
    job_id = add_job(database)

    assert queue.dispatch(database, redis) == 3  # the file's validation, the job's preparation, its training
    assert queue.dispatch(database, redis) == 0
    assert waiting(redis, "gpu") == [f"train-{job_id}-1"]
    assert len(waiting(redis, "cpu")) == 2


def test_what_is_rolled_back_is_never_dispatched(database: Database, redis: Redis) -> None:
    with database.session(TEAM) as session:
        queue.put(session, TEAM, queue.TRAIN, ["ftjob-1", 1])
        session.flush()
        session.get_transaction().rollback()

    assert queue.dispatch(database, redis) == 0
    assert waiting(redis, "gpu") == []


def test_what_a_crash_left_in_the_outbox_is_dispatched_later(database: Database, redis: Redis) -> None:
    job_id = add_job(database)  # committed, and then nobody dispatched it
    assert waiting(redis, "gpu") == []

    another_process = Database(database.engine.url.render_as_string(hide_password=False), pool_size=1)
    queue.dispatch(another_process, redis)
    another_process.dispose()

    assert waiting(redis, "gpu") == [f"train-{job_id}-1"]


def test_a_queue_that_is_away_loses_nothing(database: Database, redis: Redis, tmp_path: Path) -> None:
    job_id = add_job(database)

    queue.dispatch_soon(database, queue.connect(f"unix://{tmp_path}/nobody.sock"))
    assert job_of(database, job_id).state == "queued"
    assert outbox(database) == 3

    queue.dispatch_soon(database, redis)
    assert outbox(database) == 0
    assert waiting(redis, "gpu") == [f"train-{job_id}-1"]


def test_a_queue_that_is_silent_is_given_up_and_loses_nothing(database: Database, tmp_path: Path) -> None:
    add_job(database)
    valkey = start_valkey(tmp_path)
    valkey.process.send_signal(signal.SIGSTOP)
    try:
        queue.dispatch_soon(database, queue.connect(valkey.url))
        assert outbox(database) == 3
    finally:
        valkey.process.send_signal(signal.SIGCONT)
        valkey.stop()


def test_a_database_that_went_away_after_the_commit_is_not_the_callers_error(redis: Redis, tmp_path: Path) -> None:
    away = Database(f"postgresql://nobody@/nothing?host={tmp_path}", pool_size=1)

    queue.dispatch_soon(away, redis)

    assert waiting(redis, "gpu") == []


def test_a_queue_that_was_restarted_is_used_again_without_an_error(tmp_path: Path) -> None:
    valkey = start_valkey(tmp_path)
    with queue.connect(valkey.url) as redis:
        queue.enqueue(redis, queue.TRAIN, ["ftjob-1", 1])
        valkey.stop()
        valkey = start_valkey(tmp_path)
        try:
            assert waiting(redis, "gpu") == ["train-ftjob-1-1"]
        finally:
            valkey.stop()


def test_two_who_dispatch_at_once_hand_each_task_over_once(database: Database, redis: Redis) -> None:
    job_id = add_job(database)

    with database.session_across_teams() as session:
        session.scalars(select(OutboxMessage).with_for_update()).all()  # as the other one does
        assert queue.dispatch(database, redis) == 0
    queue.dispatch(database, redis)

    assert waiting(redis, "gpu") == [f"train-{job_id}-1"]


def test_a_task_carries_names_and_ids_only(database: Database, redis: Redis) -> None:
    job_id = add_job(database)
    queue.dispatch(database, redis)

    [message_id] = message_ids(redis, "gpu")
    task = QueuedTask.fetch(message_id, connection=redis, serializer=JSONSerializer)
    assert (task.func_name, tuple(task.args), task.kwargs) == (queue.TRAIN, (job_id, 1), {})
    assert (task.timeout, task.result_ttl, task.failure_ttl) == (-1, 0, 0)


def test_the_outbox_is_emptied_in_the_order_it_was_filled(database: Database, redis: Redis) -> None:
    made = [add_job(database, training_file=add_file(database)) for _ in range(5)]

    queue.dispatch(database, redis)

    assert waiting(redis, "gpu") == [f"train-{job_id}-1" for job_id in made]


def test_a_task_that_is_enqueued_again_while_its_message_is_worked_on_stays_when_that_has_ended(redis: Redis) -> None:
    rq_queue = Queue("gpu", connection=redis, serializer=JSONSerializer)
    queue.enqueue(redis, queue.TRAIN, ["ftjob-1", 1])
    [begun] = rq_queue.jobs
    redis.lpop(rq_queue.key)

    queue.enqueue(redis, queue.TRAIN, ["ftjob-1", 1])
    begun.delete(remove_from_queue=False)  # which RQ does with what has ended

    assert [tuple(task.args) for task in rq_queue.jobs] == [("ftjob-1", 1)]
