"""What is worked on next: teams take turns, and a team's own jobs go by priority and age.

Whoever takes a message asks here, so that the choice is made when somebody is free, not when work was asked for. It is
made again, by what is then under way, if somebody else was faster.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from redis import Redis
from sqlalchemy import ColumnElement, Row, Subquery, case, false, func, literal, select, union_all, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import InstrumentedAttribute, Session

from storage import attempts, leases, queue
from storage.claims import claimed, is_claimed
from storage.database import Database
from storage.files import WITHOUT_VERDICT
from storage.preparations import IN_PREPARATION
from storage.queue import QueueName, Task
from storage.tables import File, Job, Team

#: How much longer a job of one priority has waited, in effect, than one of the priority below that is as old. So
#: nothing waits for ever: after a day, a job goes before all that is newly made at the next higher priority.
HEAD_START = timedelta(days=1)

_SINCE = Job.created_at + case({"high": -HEAD_START, "low": HEAD_START}, value=Job.priority, else_=timedelta())
_TRAININGS = (
    select(literal(queue.TRAIN).label("task"), Job.id, Job.attempt, Job.team_id, Job.in_turn, _SINCE.label("since"))
    .where(Job.state == "queued")
    .subquery()
)
# For its preparation a job waits. A file that was uploaded is looked at as if for a job of low priority.
_DATA_WORK = union_all(
    select(
        literal(queue.PREPARE).label("task"), Job.id, Job.team_id, false().label("in_turn"), _SINCE.label("since")
    ).where(*IN_PREPARATION),
    select(
        literal(queue.VALIDATE_FILE), File.id, File.team_id, false(), File.created_at + HEAD_START
    ).where(*WITHOUT_VERDICT),
).subquery()  # fmt: skip


class _Work(NamedTuple):
    """Of a queue: what nobody works on yet, how much of each team is under way, and when a team had its last turn."""

    waiting: Subquery
    under_way: Subquery
    turn: InstrumentedAttribute[Any]


def _by_team(team_id: ColumnElement[str] | InstrumentedAttribute[str], criterion: ColumnElement[bool]) -> Subquery:
    return select(team_id.label("team_id"), func.count().label("number")).where(criterion).group_by(team_id).subquery()


_WORK: dict[QueueName, _Work] = {
    "gpu": _Work(_TRAININGS, _by_team(Job.team_id, Job.state == "running"), Team.gpu_turn_at),
    "cpu": _Work(
        select(_DATA_WORK).where(~is_claimed(_DATA_WORK.c.id)).subquery(),
        _by_team(_DATA_WORK.c.team_id, is_claimed(_DATA_WORK.c.id)),
        Team.cpu_turn_at,
    ),
}


def take(database: Database, worker_id: str, *, lease_seconds: float = leases.SECONDS) -> Job | None:
    """The job whose turn it is, its lease taken for the worker. None if none is queued. Raises OperationalError."""
    while (next_one := _next(database, "gpu")) is not None:
        with database.session_across_teams() as session:
            job = attempts.start(session, next_one.id, next_one.attempt, worker_id, lease_seconds=lease_seconds)
            if job is not None:
                job.in_turn = True
                _begin_turn(session, "gpu", job.team_id)
                return job
    return None


@contextmanager
def claim(database: Database) -> Iterator[Task | None]:
    """Claim the file to validate or the job to prepare whose turn it is, for the block. None if nobody is needed.

    Raises OperationalError.
    """
    while (next_one := _next(database, "cpu")) is not None:
        with claimed(database, next_one.id) as mine:
            if mine and _still_waits(database, next_one):
                yield Task(next_one.task, [next_one.id])
                return
    yield None


def waiting(session: Session, name: QueueName) -> list[Task]:
    """What nobody works on yet, of all teams, the oldest first: so many messages ought to be in the queue."""
    work = _WORK[name].waiting
    rows = session.execute(select(work).order_by(work.c.since, work.c.id))
    return [Task(row.task, [row.id, row.attempt] if row.task == queue.TRAIN else [row.id]) for row in rows]


def positions(session: Session) -> dict[str, int]:
    """Of each queued job of the session's team, its place among these: 1 is the next."""
    place = func.row_number().over(order_by=(Job.in_turn.desc(), _SINCE, Job.id))
    rows = session.execute(select(Job.id, place.label("place")).where(Job.state == "queued"))
    return {row.id: row.place for row in rows}


def enqueue_lost(database: Database, redis: Redis) -> int:
    """Put messages into the queues for what waits there without any, for instance because Valkey was emptied.

    Returns how many were missing. Raises OperationalError or RedisError.
    """
    lost = 0
    for name in _WORK:
        with database.session_across_teams() as session:
            tasks, coming = waiting(session, name), queue.outbox_size(session, name)
        lost += queue.top_up(redis, name, tasks, coming=coming)
    return lost


def _next(database: Database, name: QueueName) -> Row[Any] | None:
    """First what was interrupted; then, of the teams with the least under way, that whose last turn is longest ago."""
    work = _WORK[name]
    each = work.waiting.c
    foremost = (
        select(work.waiting)
        .ext(distinct_on(each.team_id))
        .order_by(each.team_id, each.in_turn.desc(), each.since, each.id)
        .subquery()
    )
    query = (
        select(foremost)
        .join(Team, Team.id == foremost.c.team_id)
        .outerjoin(work.under_way, work.under_way.c.team_id == foremost.c.team_id)
        .order_by(
            foremost.c.in_turn.desc(),
            func.coalesce(work.under_way.c.number, 0),
            work.turn.asc().nulls_first(),
            foremost.c.since,
            foremost.c.id,
        )
        .limit(1)
    )
    with database.session_across_teams() as session:
        return session.execute(query).first()


def _still_waits(database: Database, work: Row[Any]) -> bool:
    """Whether what is now claimed wasn't finished just before; then its team's turn begins."""
    with database.session_across_teams() as session:
        waits = session.scalar(select(_DATA_WORK.c.id).where(_DATA_WORK.c.id == work.id)) is not None
        if waits:
            _begin_turn(session, "cpu", work.team_id)
        return waits


def _begin_turn(session: Session, name: QueueName, team_id: str) -> None:
    session.execute(update(Team).where(Team.id == team_id).values({_WORK[name].turn: func.clock_timestamp()}))
