"""Tuned models: the rows behind /v1/models. A row exists only when every file of its folder does.

Whoever begins something with a model holds its row meanwhile, so that its deletion waits and then finds the beginning.
A model's folder outlives its row's deletion for a while (`storage.garbage`): requests of other processes read it.
"""

from collections.abc import Collection, Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from api_schemas.errors import LikenessError
from api_schemas.jobs import UNENDED
from storage.tables import Alias, Job, Model

#: How many of what keeps a model from being deleted are named.
_NAMED = 3


def model_id(job: Job, base_model: str) -> str:
    """`ft:{base}:{team}:{suffix}:{id}`, with the first half of the job's own id."""
    return f"ft:{base_model}:{job.team_id}:{job.suffix or ''}:{job.id.rpartition('-')[2][:12]}"


def artifact_name(job: Job) -> str:
    """The name of the job's model in the artifact store: one per attempt, so that attempts can't collide."""
    return f"{job.id}-{job.attempt}"


def add(
    session: Session, job: Job, *, base_model: str, weights_sha256: str, dimension: int, max_seq_length: int | None
) -> Model:
    """Register the published model of a job, in the commit that ends the job."""
    row = Model(
        id=model_id(job, base_model),
        team_id=job.team_id,
        base_model=base_model,
        job_id=job.id,
        training_file=job.training_file,
        artifact=artifact_name(job),
        evaluation_split=job.evaluation["split"]["id"] if job.evaluation else None,
        weights_sha256=weights_sha256,
        reads=job.reads,
        dimension=dimension,
        max_seq_length=max_seq_length,
    )
    session.add(row)
    return row


def find(session: Session, name: str) -> Model | None:
    """A tuned model of the team by its id, unless it is deleted."""
    return session.scalar(select(Model).where(Model.id == name, Model.deleted_at.is_(None)))


def list_models(session: Session) -> Sequence[Model]:
    """The team's tuned models, newest first."""
    listed = select(Model).where(Model.deleted_at.is_(None))
    return session.scalars(listed.order_by(Model.created_at.desc(), Model.id)).all()


def hold(session: Session, name: str) -> None:
    """Keep a tuned model from being deleted until the transaction ends; other names are not looked at.

    Raises LikenessError `model_not_found` for one that is deleted.
    """
    held = session.execute(select(Model.deleted_at).where(Model.id == name).with_for_update(read=True)).one_or_none()
    if held is not None and held.deleted_at is not None:
        raise _not_found(name)


def delete(session: Session, name: str) -> None:
    """Delete a tuned model: from the commit on nobody finds it, and its files go when nobody can be reading them.

    Raises LikenessError `model_not_found`, or `model_in_use` while a job begins with it or an alias stands for it.
    """
    row = session.scalar(select(Model).where(Model.id == name, Model.deleted_at.is_(None)).with_for_update())
    if row is None:
        raise _not_found(name)
    begun = select(Job.id).where(Job.model == name, Job.state.in_(UNENDED)).order_by(Job.created_at, Job.id)
    if jobs := session.scalars(begun).all():
        raise _in_use(
            f"Jobs train this model further and have not ended: {_some(jobs)}. Cancel them first, or wait for them."
        )
    if names := session.scalars(select(Alias.name).where(Alias.model == name).order_by(Alias.name)).all():
        raise _in_use(f"Aliases stand for this model: {_some(names)}. Delete them first, or point them elsewhere.")
    row.deleted_at = func.clock_timestamp()


def record_damage(session: Session, name: str, damage: str | None) -> bool:
    """Withdraw a model whose files are not as they were published, saying why, or take that back.

    Returns whether anything has changed.
    """
    changed = update(Model).where(Model.id == name, Model.damage.is_distinct_from(damage)).values(damage=damage)
    return session.scalar(changed.returning(Model.id)) is not None


def is_registered(session: Session, artifact: str) -> bool:
    """Whether a model that isn't deleted has this name in the artifact store."""
    registered = select(Model.id).where(Model.artifact == artifact, Model.deleted_at.is_(None))
    return session.scalar(registered) is not None


def unneeded(session: Session, artifacts: Collection[str], *, deleted_seconds: float) -> set[str]:
    """Which of these names in the artifact store nobody will ask for: of models deleted so long ago, or never made.

    A name of no job is none of them: it may belong to a database that isn't this one.
    """
    # Before the models: an attempt that runs may make its model between the two looks, one that doesn't never will.
    over = _of_attempts_that_are_over(session, artifacts)
    age = func.extract("epoch", func.clock_timestamp() - Model.deleted_at)
    rows = session.execute(select(Model.artifact, age.label("age")).where(Model.artifact.in_(artifacts))).all()
    deleted = {row.artifact for row in rows if row.age is not None and row.age >= deleted_seconds}
    return deleted | (over - {row.artifact for row in rows})


def _of_attempts_that_are_over(session: Session, artifacts: Collection[str]) -> set[str]:
    job_ids = {artifact: artifact.rpartition("-")[0] for artifact in artifacts}
    jobs = select(Job.id, Job.state, Job.attempt).where(Job.id.in_(set(job_ids.values())))
    running = {job.id: f"{job.id}-{job.attempt}" if job.state == "running" else None for job in session.execute(jobs)}
    return {artifact for artifact, job_id in job_ids.items() if job_id in running and running[job_id] != artifact}


def _in_use(message: str) -> LikenessError:
    return LikenessError("model_in_use", message, param="model", headers={"x-should-retry": "false"})


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _not_found(name: str) -> LikenessError:
    return LikenessError("model_not_found", f"The team has no tuned model {name!r}.", param="model")
