"""What is kept of a search: a folder for each finished trial, beside the job's checkpoints and as long as these.

What is in one is the business of `workers.search`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.artifacts import ArtifactStore, differing


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
        folder = self.folder(kind, number)
        return folder.is_dir() and not differing(folder)

    @contextmanager
    def publishing(self, kind: str, number: int) -> Iterator[Path]:
        """A folder to write one into, there once the block has ended well.

        One that is there already stays: a trial is decided by its job, so another attempt's is the same. Raises
        OSError as the file system does.
        """
        self._root.mkdir(exist_ok=True)
        target = self.folder(kind, number)
        try:
            # The name of an unfinished checkpoint, so that it is removed with them.
            with self._artifacts.publishing(target, name=f"checkpoint-{self._job_id}-{kind}-{number}") as folder:
                yield folder
        except OSError:
            if not target.exists():
                raise

    def remove(self, kind: str, number: int) -> None:
        """Remove one; fine if it is gone."""
        shutil.rmtree(self.folder(kind, number), ignore_errors=True)

    def keep_only(self, kind: str, number: int) -> None:
        """Remove all others of the kind."""
        for path in self._root.glob(f"{kind}-*"):
            if path.name != f"{kind}-{number}":
                shutil.rmtree(path, ignore_errors=True)
