"""Tuned models: the rows behind /v1/models. A row exists only when every file of its folder does."""

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from storage.tables import Job, Model


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


def delete(session: Session, name: str) -> str | None:
    """Mark a model deleted. Returns its artifact's name, or None when the team has no such model."""
    marked = (
        update(Model)
        .where(Model.id == name, Model.deleted_at.is_(None))
        .values(deleted_at=func.clock_timestamp())
        .returning(Model.artifact)
    )
    artifact: str | None = session.scalar(marked)
    return artifact


def is_registered(session: Session, artifact: str) -> bool:
    """Whether a model that isn't deleted has this name in the artifact store."""
    registered = select(Model.id).where(Model.artifact == artifact, Model.deleted_at.is_(None))
    return session.scalar(registered) is not None
