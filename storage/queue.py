"""From the outbox to RQ. RQ carries names and ids only; PostgreSQL is the record."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import structlog
from redis import Redis, RedisError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job as QueuedTask
from rq.job import JobStatus
from rq.serializers import JSONSerializer
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from storage.database import Database
from storage.tables import OutboxMessage

QueueName = Literal["gpu", "cpu"]

TRAIN = "workers.tasks.train"
VALIDATE_FILE = "workers.tasks.validate_file"
PREPARE = "workers.tasks.prepare"
#: The only callables a worker runs, and the queue each waits in.
TASKS: dict[str, QueueName] = {TRAIN: "gpu", VALIDATE_FILE: "cpu", PREPARE: "cpu"}

_DISPATCH_BATCH = 100
# A worker renews a task's heartbeat at least every 30 s while it is alive.
_DEAD_AFTER = timedelta(seconds=90)
_log = structlog.get_logger("likeness.queue")


def connect(redis_url: str) -> Redis:
    """A connection pool to Valkey or Redis with deadlines, so that a silent server is noticed."""
    return Redis.from_url(redis_url, socket_connect_timeout=2, socket_timeout=2, health_check_interval=30)


def put(session: Session, team_id: str, task: str, arguments: Sequence[str | int]) -> None:
    """Ask, in the session's own commit, for `task` to be handed to the queue."""
    session.add(OutboxMessage(team_id=team_id, queue=TASKS[task], task=task, arguments=list(arguments)))


def dispatch(database: Database, redis: Redis) -> int:
    """Hand what waits in the outbox to RQ. Returns how many tasks were handed over.

    A crash between the enqueue and the commit enqueues a task twice, which is harmless: a task's id is made
    of its arguments, and a task that finds its work taken does nothing. Raises RedisError.
    """
    with database.session_across_teams() as session:
        waiting = session.scalars(
            select(OutboxMessage).order_by(OutboxMessage.id).limit(_DISPATCH_BATCH).with_for_update(skip_locked=True)
        ).all()
        for message in waiting:
            enqueue(redis, message.task, message.arguments)
        if waiting:
            session.execute(delete(OutboxMessage).where(OutboxMessage.id.in_([message.id for message in waiting])))
    return len(waiting)


def dispatch_soon(database: Database, redis: Redis) -> None:
    """Dispatch now if the queue answers. If it doesn't, the reconciler dispatches later: nothing is lost."""
    try:
        dispatch(database, redis)
    except RedisError as error:
        _log.warning("dispatch_postponed", reason=str(error))


def enqueue(redis: Redis, task: str, arguments: Sequence[str | int]) -> None:
    """Put a task into its queue, once per arguments. No timeout and no retry of RQ's own: leases do that."""
    Queue(TASKS[task], connection=redis, serializer=JSONSerializer).enqueue_call(
        task, args=tuple(arguments), timeout=-1, result_ttl=0, failure_ttl=0, job_id=_task_id(task, arguments)
    )


def is_alive(redis: Redis, task: str, arguments: Sequence[str | int]) -> bool:
    """Whether RQ still has a task waiting, or running on a worker that gave a sign of life lately."""
    try:
        queued = QueuedTask.fetch(_task_id(task, arguments), connection=redis, serializer=JSONSerializer)
        status = queued.get_status()
    except NoSuchJobError:
        return False
    if status == JobStatus.QUEUED:
        position = Queue(TASKS[task], connection=redis, serializer=JSONSerializer).get_job_position(queued)
        return position is not None
    heartbeat = queued.last_heartbeat
    return status == JobStatus.STARTED and heartbeat is not None and datetime.now(UTC) - heartbeat < _DEAD_AFTER


def _task_id(task: str, arguments: Sequence[str | int]) -> str:
    # RQ takes letters, digits, - and _ only.
    return "-".join([task.rpartition(".")[2], *map(str, arguments)])
