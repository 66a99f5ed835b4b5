"""Bytes: uploaded files and tuned models, in a local folder.

What is visible is complete: bytes are written beside, forced to disk, and renamed into place.
"""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from api_schemas.errors import LikenessError

MANIFEST = "manifest.json"
_HASH_CHUNK = 1024 * 1024
_UNFINISHED_SECONDS = 24 * 3600


@dataclass(frozen=True)
class StoredFile:
    """Bytes that were written: how many, and their SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


class ArtifactStore:
    """The folder of all artifacts. Names inside it are ids of the service's own making, never a user's."""

    def __init__(self, root: Path) -> None:
        self._files = root / "files"
        self._models = root / "models"
        self._unfinished = root / "unfinished"
        for directory in (self._files, self._models, self._unfinished):
            directory.mkdir(parents=True, exist_ok=True)

    def file(self, file_id: str) -> Path:
        """Where an uploaded file lies."""
        return self._files / file_id

    def model(self, artifact: str) -> Path:
        """The folder of a published model."""
        return self._models / artifact

    async def write_file(self, file_id: str, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Store a stream under an id. Either all of it is there in the end, or nothing.

        Raises LikenessError `storage_full` when the disk is.
        """
        temporary = self._unfinished / f"{file_id}-{secrets.token_hex(4)}"
        try:
            with _disk_full_is_told(), temporary.open("wb") as target:
                digest, size = hashlib.sha256(), 0
                async for chunk in chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    await to_thread.run_sync(target.write, chunk)
                await to_thread.run_sync(_flush_to_disk, target)
                temporary.rename(self.file(file_id))
                _sync_directory(self._files)
        finally:
            temporary.unlink(missing_ok=True)
        return StoredFile(size, digest.hexdigest())

    def delete_file(self, file_id: str) -> None:
        """Remove an uploaded file's bytes; fine if they are gone."""
        self.file(file_id).unlink(missing_ok=True)

    @contextmanager
    def publishing_model(self, artifact: str) -> Iterator[Path]:
        """A folder to write a model into, published under `artifact` when the block ends well.

        The manifest is written last. Raises OSError as the file system does; then nothing is published.
        """
        temporary = self._unfinished / f"{artifact}-{secrets.token_hex(4)}"
        temporary.mkdir()
        try:
            yield temporary
            _write_manifest(temporary)
            temporary.rename(self.model(artifact))
            _sync_directory(self._models)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def verify_model(self, artifact: str) -> Path:
        """The folder of a model whose every file still has the checksum of its manifest.

        Raises LikenessError `artifact_corrupt`.
        """
        folder = self.model(artifact)
        try:
            sums: dict[str, str] = json.loads((folder / MANIFEST).read_text())["sha256"]
            present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
            wrong = sorted(present.symmetric_difference({*sums, MANIFEST})) or [
                name for name, expected in sums.items() if sha256(folder / name) != expected
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _corrupt(artifact, [MANIFEST]) from error
        if wrong:
            raise _corrupt(artifact, wrong)
        return folder

    def delete_model(self, artifact: str) -> None:
        """Remove a published model's folder; fine if it is gone."""
        shutil.rmtree(self.model(artifact), ignore_errors=True)

    def sweep_unfinished(self, *, older_than_seconds: float = _UNFINISHED_SECONDS) -> int:
        """Remove what crashed writers left behind. Returns how many leftovers there were."""
        limit = time.time() - older_than_seconds
        leftovers = [path for path in self._unfinished.iterdir() if _modified(path) < limit]
        for path in leftovers:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return len(leftovers)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _write_manifest(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {str(path.relative_to(folder)): sha256(path) for path in paths}
    for path in paths:
        _sync_path(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"sha256": sums}, indent=2) + "\n")
    _sync_path(manifest)
    for directory in {path.parent for path in paths} | {folder}:
        _sync_directory(directory)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # its writer has just finished
        return math.inf


def _flush_to_disk(target: object) -> None:
    target.flush()  # type: ignore[attr-defined]
    os.fsync(target.fileno())  # type: ignore[attr-defined]


def _sync_path(path: Path) -> None:
    with path.open("rb") as source:
        os.fsync(source.fileno())


def _sync_directory(directory: Path) -> None:
    # A rename is only durable once the directory that holds the name is.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_full_is_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise LikenessError(
            "storage_full",
            "The disk that holds uploaded files is full; nothing was kept. Free space, then upload again.",
            headers={"Retry-After": "60"},
        ) from error


def _corrupt(artifact: str, names: list[str]) -> LikenessError:
    return LikenessError(
        "artifact_corrupt",
        f"The stored model {artifact} differs from its checksums ({', '.join(names[:3])}); "
        "it is not served. Restore it from a backup or train it again.",
    )
