"""Bytes: uploaded files, parts of files to come, checkpoints and tuned models, in a local folder.

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
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from api_schemas.errors import LikenessError

MANIFEST = "manifest.json"
#: What the system says where a disk is full, or somebody's share of it, or a file may not grow.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK_BYTES = 1024 * 1024
_UNFINISHED_SECONDS = 24 * 3600


@dataclass(frozen=True)
class StoredFile:
    """Bytes that were written: how many, and their SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ReceivedPart:
    """A part that is on disk, but not yet where parts are looked for."""

    path: Path
    stored: StoredFile


class ArtifactStore:
    """The folder of all artifacts. Names inside it are ids of the service's own making, never a user's."""

    def __init__(self, root: Path) -> None:
        self._files = root / "files"
        self._parts = root / "parts"
        self._models = root / "models"
        self.checkpoints = root / "checkpoints"  # see storage.checkpoints
        #: Where temporary files go; what crashed writers leave here is swept.
        self.unfinished = root / "unfinished"
        for directory in (self._files, self._parts, self._models, self.checkpoints, self.unfinished):
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
        async with self._written(file_id, chunks) as (temporary, stored):
            temporary.rename(self.file(file_id))
            _sync_directory(self._files)
        return stored

    def delete_file(self, file_id: str) -> None:
        """Remove an uploaded file's bytes; fine if they are gone."""
        self.file(file_id).unlink(missing_ok=True)

    def old_files(self, *, older_than_seconds: float = _UNFINISHED_SECONDS) -> list[str]:
        """Ids of the files whose bytes have been there for so long that their row must be there too."""
        limit = time.time() - older_than_seconds
        return [path.name for path in self._files.iterdir() if _modified(path) < limit]

    @asynccontextmanager
    async def receiving_part(self, upload_id: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[ReceivedPart]:
        """Write a part. It is gone after the block unless `keep_part` was called in it.

        Raises LikenessError `storage_full` when the disk is.
        """
        async with self._written(upload_id, chunks) as (temporary, stored):
            yield ReceivedPart(temporary, stored)

    def keep_part(self, upload_id: str, part: ReceivedPart) -> None:
        """Put a received part in its place. Parts of the same content share one: a part sent twice takes no room."""
        folder = self._parts / upload_id
        folder.mkdir(exist_ok=True)
        part.path.rename(folder / part.stored.sha256)
        _sync_directory(folder)
        _sync_directory(self._parts)

    async def assemble(
        self, file_id: str, upload_id: str, parts: Sequence[StoredFile], md5: str | None = None
    ) -> StoredFile:
        """Store the parts of an upload, in the order given, as one file. All of it is there in the end, or nothing.

        Raises LikenessError `artifact_corrupt` for a part that is gone or not what was received, `checksum_mismatch`
        unless the whole has the MD5 given, `storage_full` when the disk is.
        """
        paths = [(self._parts / upload_id / part.sha256, part.sha256) for part in parts]
        return await self.write_file(file_id, _verified_chunks(paths, md5))

    def uploads_with_parts(self) -> list[str]:
        """Ids of the uploads that bytes are kept for."""
        return [path.name for path in self._parts.iterdir()]

    def delete_parts(self, upload_id: str) -> None:
        """Remove all parts of an upload; fine if they are gone."""
        shutil.rmtree(self._parts / upload_id, ignore_errors=True)

    @asynccontextmanager
    async def _written(self, name: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[Path, StoredFile]]:
        """A temporary file with the stream in it, forced to disk; to be renamed in the block, else it is removed."""
        temporary = self.unfinished / f"{name}-{secrets.token_hex(4)}"
        try:
            with _disk_full_is_told():
                with temporary.open("wb") as target:
                    digest, size = hashlib.sha256(), 0
                    async for chunk in chunks:
                        digest.update(chunk)
                        size += len(chunk)
                        await to_thread.run_sync(target.write, chunk)
                    await to_thread.run_sync(_flush_to_disk, target)
                yield temporary, StoredFile(size, digest.hexdigest())
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def publishing_model(self, artifact: str) -> Iterator[Path]:
        """A folder to write a model into, published under `artifact` when the block ends well.

        The manifest is written last. Raises OSError as the file system does; then nothing is published.
        """
        with self.publishing(self.model(artifact), name=artifact) as folder:
            yield folder

    @contextmanager
    def publishing(self, target: Path, *, name: str) -> Iterator[Path]:
        """A folder to write into, with a manifest and under the path `target` when the block ends well.

        `name` begins the name of the folder until then. Raises OSError as the file system does, also for a target
        that is there already; then nothing is published.
        """
        temporary = self.unfinished / f"{name}-{secrets.token_hex(4)}"
        temporary.mkdir()
        try:
            yield temporary
            _write_manifest(temporary)
            temporary.rename(target)
            _sync_directory(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """An empty folder for temporary files, gone after the block. One process at a time may use a name.

        What a process left that was killed in its block is removed first.
        """
        folder = self.unfinished / f"{name}-scratch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def verify_model(self, artifact: str) -> Path:
        """The folder of a model whose every file still has the checksum of its manifest.

        Raises LikenessError `artifact_corrupt`.
        """
        folder = self.model(artifact)
        if wrong := differing(folder):
            raise _corrupt(artifact, wrong)
        return folder

    def card(self, artifact: str) -> str:
        """The model card in a published model's folder. Raises FileNotFoundError."""
        return (self.model(artifact) / "README.md").read_text("utf-8")

    def delete_model(self, artifact: str) -> None:
        """Remove a published model's folder; fine if it is gone."""
        shutil.rmtree(self.model(artifact), ignore_errors=True)

    def sweep_unfinished(self, *, older_than_seconds: float = _UNFINISHED_SECONDS) -> int:
        """Remove what crashed writers left behind. Returns how many leftovers there were."""
        limit = time.time() - older_than_seconds
        leftovers = [path for path in self.unfinished.iterdir() if _modified(path) < limit]
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


def differing(folder: Path) -> list[str]:
    """The files of a published folder that differ from its manifest, are missing or don't belong there."""
    try:
        sums: dict[str, str] = json.loads((folder / MANIFEST).read_text())["sha256"]
        present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
        return sorted(present.symmetric_difference({*sums, MANIFEST})) or [
            name for name, expected in sums.items() if sha256(folder / name) != expected
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [MANIFEST]


async def _verified_chunks(paths: Sequence[tuple[Path, str]], md5: str | None) -> AsyncIterator[bytes]:
    """The content of files in order, each checked against its SHA-256 and all of it against `md5`."""
    whole = hashlib.md5(usedforsecurity=False)
    for index, (path, expected) in enumerate(paths):
        digest = hashlib.sha256()
        try:
            with path.open("rb") as source:
                while chunk := await to_thread.run_sync(source.read, _CHUNK_BYTES):
                    await to_thread.run_sync(digest.update, chunk)
                    if md5 is not None:
                        await to_thread.run_sync(whole.update, chunk)
                    yield chunk
        except FileNotFoundError:
            raise _part_lost(index) from None
        if digest.hexdigest() != expected:
            raise _part_lost(index)
    if md5 is not None and whole.hexdigest() != md5:
        raise LikenessError(
            "checksum_mismatch",
            f"The parts in this order have the MD5 {whole.hexdigest()}, not {md5}. Check their order in `part_ids`, "
            "and each part against the `sha256` that the upload lists for it; send those that differ again.",
            param="md5",
        )


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
        if error.errno not in DISK_FULL:
            raise
        raise LikenessError(
            "storage_full",
            "The disk that holds uploaded files is full; nothing was kept. Free space, then upload again.",
            headers={"Retry-After": "60"},
        ) from error


def _part_lost(index: int) -> LikenessError:
    return LikenessError(
        "artifact_corrupt",
        f"The stored bytes of the part `part_ids.{index}` are gone or damaged. "
        "Send that part again, and complete with its new id.",
        param=f"part_ids.{index}",
        headers={"x-should-retry": "false"},
    )


def _corrupt(artifact: str, names: list[str]) -> LikenessError:
    return LikenessError(
        "artifact_corrupt",
        f"The stored model {artifact} differs from its checksums ({', '.join(names[:3])}); "
        "it is not served. Restore it from a backup or train it again.",
    )
