"""What is kept of a search: a folder for each finished trial, beside the job's checkpoints and as long as these.

What is in one is the business of `workers.search`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage import disk, manifests
from storage.artifacts import ArtifactStore


class SearchTrials:
    """The folders `checkpoints/{job id}/{kind}-{number}` of one job; kinds are trial and weights."""

    def __init__(self, artifacts: ArtifactStore, job_id: str) -> None:
        self._artifacts = artifacts
        self._job_id = job_id
        self._root = artifacts.checkpoints / job_id

    def folder(self, kind: str, number: int) -> Path:
        """Where one lies, if it is there."""
        return self._root / f"{kind}-{number}"

    def is_whole(self, kind: str, number: int) -> bool:
        """Whether it is there as it was written."""
        return manifests.is_whole(self.folder(kind, number))

    @contextmanager
    def publishing(self, kind: str, number: int) -> Iterator[Path]:
        """A folder to write one into, there once the block has ended well.

        A whole one that is there already stays: a trial is decided by its job, so another attempt's is the same.
        Raises OSError as the file system does; then nothing has changed.
        """
        disk.make_directory(self._root)
        # The name of an unfinished checkpoint, so that it is removed with them.
        name = f"checkpoint-{self._job_id}-{kind}-{number}"
        with self._artifacts.publishing_once(self.folder(kind, number), name=name) as folder:
            yield folder

    def remove(self, kind: str, number: int) -> None:
        """Remove one; fine if it is gone."""
        disk.remove(self.folder(kind, number))

    def keep_only(self, kind: str, number: int) -> None:
        """Remove all others of the kind."""
        for path in self._root.glob(f"{kind}-*"):
            if path.name != f"{kind}-{number}":
                disk.remove(path)
