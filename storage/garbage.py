"""What nobody will ask for again, and is removed: models, and what trainings wrote for TensorBoard.

Files, parts, checkpoints and what killed writers left have rules of their own, in their modules. All of it is the
reconciler's to call, and harmless if several do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from storage import disk, models
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.settings import StorageSettings
from storage.tables import Job

_DAY_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Retention:
    """How long things are kept after their end. `tensorboard` is where trainings write; None leaves that alone."""

    deleted_model_seconds: float = 300.0
    tensorboard: Path | None = None
    tensorboard_days: float = 30.0

    @classmethod
    def of(cls, settings: StorageSettings) -> Retention:
        """What an installation is set to."""
        return cls(settings.deleted_model_seconds, settings.tensorboard_dir, settings.tensorboard_days)


def sweep(database: Database, artifacts: ArtifactStore, retention: Retention) -> int:
    """Remove what is over. Returns how many folders are gone."""
    gone = _sweep_models(database, artifacts, retention.deleted_model_seconds)
    if retention.tensorboard is not None and retention.tensorboard.is_dir():
        gone += _sweep_tensorboard(database, retention.tensorboard, retention.tensorboard_days * _DAY_SECONDS)
    return gone


def _sweep_models(database: Database, artifacts: ArtifactStore, deleted_seconds: float) -> int:
    """Remove the folders of deleted models, and what attempts that are over have published or begun to."""
    # The folders are looked at before the rows: what comes later is an attempt's that runs.
    held = {artifact: [artifacts.model(artifact)] for artifact in artifacts.models()}
    for path in artifacts.unfinished.iterdir():
        held.setdefault(path.name.rpartition("-")[0], []).append(path)
    with database.session_across_teams() as session:
        unneeded = models.unneeded(session, held, deleted_seconds=deleted_seconds)
    return sum(disk.remove(path) for artifact in unneeded for path in held[artifact])


def _sweep_tensorboard(database: Database, root: Path, seconds: float) -> int:
    held = [path.name for path in root.iterdir()]
    with database.session_across_teams() as session:
        ended = _ended_before(session, held, seconds)
    return sum(disk.remove(root / job_id) for job_id in ended)


def _ended_before(session: Session, job_ids: list[str], seconds: float) -> list[str]:
    """Which of these jobs ended so long ago. One that nobody knows is none of them."""
    age = func.extract("epoch", func.clock_timestamp() - Job.finished_at)
    return list(session.scalars(select(Job.id).where(Job.id.in_(job_ids), age >= seconds)))
