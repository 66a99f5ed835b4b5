"""Tuned models' folders, looked at before they are used; what is found is written into the model's row.

Whoever finds a model damaged withdraws it for all: every process is told that the row has changed. Whoever finds it as
it was published again, after it was restored, has it served again.
"""

from pathlib import Path

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from storage import models
from storage.artifacts import ArtifactStore, corrupt_model
from storage.database import Database

log = structlog.get_logger("likeness.models")


class ModelFolders:
    """The way to a tuned model's files that leads past their checksums."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts

    def folder(self, artifact: str) -> Path:
        """Where the model's files are, whatever they are like."""
        return self._artifacts.model(artifact)

    def verified(self, name: str, artifact: str, *, weights_sha256: str | None) -> Path:
        """The folder of the model called `name`, as it was published; every byte of it is read.

        Raises LikenessError `artifact_corrupt`, and OSError where the disk can't be read.
        """
        damage = self.judged(name, artifact, weights_sha256=weights_sha256)
        if damage is not None:
            raise corrupt_model(name, damage)
        return self._artifacts.model(artifact)

    def judged(self, name: str, artifact: str, *, weights_sha256: str | None) -> str | None:
        """What is wrong with a model's folder, in words, or None; its row says so from now on.

        Raises OSError where the disk can't be read.
        """
        damage = self._artifacts.damage_of(artifact, weights_sha256=weights_sha256)
        try:
            with self._database.session_across_teams() as session:
                changed = models.record_damage(session, name, damage)
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:  # whoever looks next writes it down
            log.warning("damage_not_recorded", model=name, damage=damage, reason=type(error).__name__)
            return damage
        if changed and damage is not None:
            log.error("model_withdrawn", model=name, damage=damage)
        elif changed:
            log.info("model_served_again", model=name)
        return damage
