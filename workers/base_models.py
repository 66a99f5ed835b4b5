"""Where a job starts from: a model of its team, its own untrained encoder, or a base model that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from encoders import registry
from storage import models
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.job_base import JobBase
from storage.model_folders import ModelFolders
from storage.settings import StorageSettings
from storage.tables import Job


class Base(NamedTuple):
    """The base encoder's name, and the folder of what training starts from; None for a new adapter over vectors."""

    name: str
    folder: Path | None


def base_of(job: Job, settings: StorageSettings, database: Database) -> Base:
    """Models of a team are verified, and so is what a job from scratch starts from. Raises LikenessError."""
    artifacts = ArtifactStore(settings.artifacts_dir)
    with database.session(job.team_id) as session:
        tuned = models.find(session, job.model)
    if tuned is not None:
        folders = ModelFolders(database, artifacts)
        return Base(tuned.base_model, folders.verified(tuned.id, tuned.artifact, weights_sha256=tuned.weights_sha256))
    if job.model == registry.ADAPTER:
        return Base(job.model, None)
    if job.model == registry.SCRATCH:
        return Base(job.model, JobBase(artifacts, job.id).verified())
    return Base(job.model, registry.locate(job.model, settings.base_models_dir))
