"""What is made for one job to start from: a folder beside its checkpoints, and as long there as these.

What is in it is the business of `workers.scratch_base`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api_schemas.errors import LikenessError
from storage import disk, manifests
from storage.artifacts import ArtifactStore


class JobBase:
    """The folder `checkpoints/{job id}/base`, the same for every attempt of the job."""

    def __init__(self, artifacts: ArtifactStore, job_id: str) -> None:
        self._artifacts = artifacts
        self._job_id = job_id
        self.folder = artifacts.checkpoints / job_id / "base"

    def is_whole(self) -> bool:
        """Whether it is there as it was written. Raises OSError where the disk can't be read."""
        return not manifests.differing(self.folder)

    def verified(self) -> Path:
        """The folder. Raises LikenessError `artifact_corrupt` unless it is there as it was written."""
        if not self.is_whole():
            raise LikenessError(
                "artifact_corrupt",
                "The tokenizer and the untrained weights that were made for this job are gone or damaged. Create the "
                "job again: the same files and seed give the same ones.",
            )
        return self.folder

    @contextmanager
    def publishing(self) -> Iterator[Path]:
        """A folder to write into, there once the block has ended well, in place of one that is damaged.

        One job has one preparation at a time. Raises OSError as the file system does; then there is none.
        """
        disk.make_directory(self.folder.parent)
        # The name of an unfinished checkpoint, so that it is removed with them.
        with self._artifacts.publishing_once(self.folder, name=f"checkpoint-{self._job_id}-base") as folder:
            yield folder
