"""Checkpoints of jobs: folders under `checkpoints/{job id}/{step}` in the artifact store.

What is in one is the business of `workers.training.checkpoints`, but for SUMMARY, which the API lists. They are
there as long as their job has not ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from api_schemas.jobs import ENDED, UNENDED
from storage import disk, manifests
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.tables import Job

SUMMARY = "checkpoint.json"


@dataclass(frozen=True)
class Summary:
    """What is told of a checkpoint without opening it."""

    step: int
    created_at: int  # Unix time, seconds
    train_loss: float


class JobCheckpoints:
    """The checkpoints of one job, whichever of its attempts wrote them."""

    def __init__(self, artifacts: ArtifactStore, job_id: str) -> None:
        self._artifacts = artifacts
        self._job_id = job_id
        self._root = artifacts.checkpoints / job_id

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, newest first."""
        try:
            return sorted((int(path.name) for path in self._root.iterdir() if path.name.isdecimal()), reverse=True)
        except FileNotFoundError:
            return []

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self._root / str(step)

    def differing(self, step: int) -> list[str]:
        """What is wrong with a checkpoint, a phrase for each file; nothing for one that is as it was written.

        Raises OSError where the disk can't be read.
        """
        return manifests.differing(self.folder(step))

    @contextmanager
    def publishing(self, step: int) -> Iterator[Path]:
        """A folder to write a checkpoint into, there once the block has ended well.

        A whole one of the same step that is there already stays: see `workers.training.checkpoints` for why that is
        right. Raises OSError as the file system does; then nothing has changed.
        """
        disk.make_directory(self._root)
        with self._artifacts.publishing_once(self.folder(step), name=f"{self._unfinished}{step}") as folder:
            yield folder

    def keep_newest(self, count: int, *, step: int) -> None:
        """Of those up to a step, remove all but the newest `count`. Later ones aren't this writer's to judge."""
        for older in [each for each in self.steps() if each <= step][count:]:
            self.remove(older)

    def remove(self, step: int) -> None:
        """Remove one; fine if it is gone."""
        disk.remove(self.folder(step))

    def remove_unfinished(self) -> None:
        """Remove what writers left that were killed."""
        for path in self._artifacts.unfinished.glob(f"{self._unfinished}*"):
            disk.remove(path)

    def remove_all(self) -> bool:
        """Remove them, and what writers left that were killed. Whether they are gone."""
        self.remove_unfinished()
        return disk.remove(self._root)

    def summaries(self) -> list[Summary]:
        """What is told of each, newest first."""
        found = []
        for step in self.steps():
            try:
                told = json.loads((self.folder(step) / SUMMARY).read_text())
                found.append(Summary(step, told["created_at"], told["train_loss"]))
            except (OSError, ValueError, KeyError):
                continue  # removed this moment, or torn: training passes over it too
        return found

    @property
    def _unfinished(self) -> str:
        return f"checkpoint-{self._job_id}-"


def remove_if_ended(database: Database, artifacts: ArtifactStore, job_id: str) -> None:
    """Remove a job's checkpoints if nothing will go on from them."""
    with database.session_across_teams() as session:
        state = session.scalar(select(Job.state).where(Job.id == job_id))
    if state is None or state in ENDED:
        JobCheckpoints(artifacts, job_id).remove_all()


def sweep(database: Database, artifacts: ArtifactStore) -> int:
    """Remove the checkpoints of jobs that have ended, left by who was killed. Returns of how many jobs."""
    held = [path.name for path in artifacts.checkpoints.iterdir()]
    with database.session_across_teams() as session:
        going_on = set(session.scalars(select(Job.id).where(Job.id.in_(held), Job.state.in_(UNENDED))))
    ended = [job_id for job_id in held if job_id not in going_on]
    return sum(JobCheckpoints(artifacts, job_id).remove_all() for job_id in ended)
