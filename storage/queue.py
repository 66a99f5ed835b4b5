"""From the outbox to RQ. RQ carries names and ids only; PostgreSQL is the record.

A message says that something waits, and what it was when it was sent. What its reader does is decided when it is read
(`storage.scheduling`), so one message is as good as another: what counts is that there are enough of them.
"""

import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import structlog
from redis import Redis, RedisError, ResponseError
from rq import Queue
from rq.serializers import JSONSerializer
from sqlalchemy import delete, func, select
from sqlalchemy.exc import OperationalError
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
# How long a worker may take from a message to the lease or the claim that it leads to.
_DELIVERY_SECONDS = 10.0
_log = structlog.get_logger("likeness.queue")


class Task(NamedTuple):
    """One of TASKS and what it is about: ids and an attempt's number."""

    name: str
    arguments: Sequence[str | int]


def connect(redis_url: str) -> Redis:
    """A connection pool to Valkey or Redis with deadlines, so that a silent server is noticed."""
    return Redis.from_url(redis_url, socket_connect_timeout=2, socket_timeout=2, health_check_interval=30)


def put(session: Session, team_id: str, task: str, arguments: Sequence[str | int]) -> None:
    """Ask, in the session's own commit, for `task` to be handed to the queue."""
    session.add(OutboxMessage(team_id=team_id, queue=TASKS[task], task=task, arguments=list(arguments)))


def dispatch(database: Database, redis: Redis) -> int:
    """Hand what waits in the outbox to RQ. Returns how many tasks were handed over.

    A crash between the enqueue and the commit enqueues a task twice, which is harmless: whoever takes a message and
    finds that nothing waits does nothing. Raises RedisError.
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
    """Dispatch now if the servers answer. If they don't, the reconciler dispatches later: nothing is lost."""
    try:
        dispatch(database, redis)
    except (OperationalError, RedisError) as error:
        _log.warning("dispatch_postponed", reason=type(error).__name__)


def enqueue(redis: Redis, task: str, arguments: Sequence[str | int]) -> None:
    """Put a task into its queue. No timeout and no retry of RQ's own: leases do that."""
    # Never the same id twice: RQ removes a message's record when its reader ends, were it handed over again or not.
    message_id = f"{_stem(task, arguments)}-{secrets.token_hex(4)}"
    _queue(TASKS[task], redis).enqueue_call(
        task, args=tuple(arguments), timeout=-1, result_ttl=0, failure_ttl=0, job_id=message_id
    )


def outbox_size(session: Session, name: QueueName) -> int:
    """How many messages are still to be handed to a queue."""
    return session.scalar(select(func.count(OutboxMessage.id)).where(OutboxMessage.queue == name)) or 0


def top_up(redis: Redis, name: QueueName, waiting: Sequence[Task], *, coming: int) -> int:
    """Put messages into a queue until there are as many as there are tasks that wait. Returns how many were missing.

    coming: how many messages are on their way already. Raises RedisError.
    """
    queue = _queue(name, redis)
    missing = len(waiting) - coming - redis.llen(queue.key) - _being_delivered(redis, queue)
    if missing <= 0:
        return 0
    told = {_text(message_id).rpartition("-")[0] for message_id in redis.lrange(queue.key, 0, -1)}
    untold = [task for task in waiting if _stem(*task) not in told][:missing]
    for task in untold:
        enqueue(redis, *task)
    return len(untold)


def _being_delivered(redis: Redis, queue: Queue) -> int:
    """How many messages were taken so lately that what they lead to may not have begun yet."""
    begun = []
    for execution in redis.zrange(queue.started_job_registry.key, 0, -1):
        with suppress(ResponseError, ValueError):  # it isn't RQ's, or has just ended
            begun.append(float(redis.hget(f"rq:execution:{_text(execution)}", "created_at") or ""))
    # By two machines' clocks: if they disagree, a message too many is put in, which does no harm.
    return sum(abs(time.time() - at) < _DELIVERY_SECONDS for at in begun)


def _queue(name: QueueName, redis: Redis) -> Queue:
    return Queue(name, connection=redis, serializer=JSONSerializer)


def _text(name: Any) -> str:
    # Strangers' bytes need not be text.
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def _stem(task: str, arguments: Sequence[str | int]) -> str:
    """What the ids of all messages of a task begin with. RQ takes letters, digits, - and _ only."""
    return "-".join([task.rpartition(".")[2], *map(str, arguments)])
