"""What has happened to a job so far: its events, and what its steps measured."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import CTE, Double, func, or_, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from storage.tables import Job, JobEvent, JobMetrics


def events(
    session: Session, job_id: str, *, after_seq: int | None, limit: int, newest_first: bool
) -> tuple[Sequence[JobEvent], bool]:
    """Events behind number `after_seq` in the order asked for, and whether more follow."""
    query = select(JobEvent).where(JobEvent.job_id == job_id)
    if after_seq is not None:
        query = query.where(JobEvent.seq < after_seq if newest_first else JobEvent.seq > after_seq)
    query = query.order_by(JobEvent.seq.desc() if newest_first else JobEvent.seq)
    rows = session.scalars(query.limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def metrics(session: Session, job: Job, *, max_points: int) -> Sequence[dict[str, Any]]:
    """The job's steps, in order: all of them, or at most `max_points`, of 4 or more.

    Then the first and the last are among them, and of each of as many equal stretches as there is room for, the steps
    of the lowest and of the highest loss. They are chosen by the database: no more than these are read into memory.
    """
    measured = _measured(job).c
    first, last, count = session.execute(
        select(func.min(measured.step), func.max(measured.step), func.count(measured.step))
    ).one()
    steps = select(measured["values"]).order_by(measured.step)
    if count > max_points:
        stretches = (max_points - 2) // 2
        stretch = func.div((measured.step - first) * stretches, last - first + 1)
        loss = measured["values"]["loss"].as_float()
        ranked = select(
            measured.step,
            func.row_number().over(partition_by=stretch, order_by=(loss, measured.step)).label("lowest"),
            func.row_number().over(partition_by=stretch, order_by=(loss.desc(), measured.step)).label("highest"),
        ).subquery()
        extremes = select(ranked.c.step).where(or_(ranked.c.lowest == 1, ranked.c.highest == 1))
        steps = steps.where(or_(measured.step.in_((first, last)), measured.step.in_(extremes)))
    return session.scalars(steps).all()


def _measured(job: Job) -> CTE:
    """The job's steps and their values: of one that was taken again, what its newest attempt measured."""
    return (
        select(JobMetrics.step, JobMetrics.values.label("values"))
        .where(JobMetrics.job_id == job.id)
        .ext(distinct_on(JobMetrics.step))
        .order_by(JobMetrics.step, JobMetrics.attempt.desc())
        .cte()
    )


class Rates(NamedTuple):
    """Over all steps of the job: what was trained on over the seconds it took; None without any."""

    steps: int
    pairs_per_second: float | None
    tokens_per_second: float | None


def rates(session: Session, job: Job) -> Rates:
    """How many steps there are, and how fast they were together."""
    values = _measured(job).c["values"]
    seconds = values["seconds"].as_float()
    whole = func.nullif(func.sum(seconds), 0.0)
    pairs, tokens = (
        func.sum(values[name].as_float() * seconds, type_=Double()) / whole
        for name in ("pairs_per_second", "tokens_per_second")
    )
    row: Any = session.execute(select(func.count(values), pairs, tokens)).one()
    return Rates(*row)
