"""Bytes: uploaded files, parts of files to come, checkpoints and tuned models, in a local folder.

What is visible is complete: bytes are written beside, forced to disk, and renamed into place.
"""

import errno
import hashlib
import math
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from anyio import to_thread

from api_schemas.errors import LikenessError
from storage import disk, manifests

log = structlog.get_logger("likeness.artifacts")

#: The card, and the file whose checksum a model's row has too.
_CARD = "README.md"
_WEIGHTS = "model.safetensors"
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


class AlreadyPublishedError(FileExistsError):
    """Something is published under this name, and stays."""


class ArtifactStore:
    """The folder of all artifacts. Names inside it are ids of the service's own making, never a user's.

    Where the disk is full or fails, files and parts raise LikenessError `storage_full` or `storage_failed`, and
    folders OSError; either way nothing is there that wasn't before.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = root / "files"
        self._parts = root / "parts"
        self._models = root / "models"
        self.checkpoints = root / "checkpoints"  # see storage.checkpoints
        #: Where temporary files go; what crashed writers leave here is swept.
        self.unfinished = root / "unfinished"
        root.mkdir(parents=True, exist_ok=True)
        for directory in (self._files, self._parts, self._models, self.checkpoints, self.unfinished):
            disk.make_directory(directory)

    def file(self, file_id: str) -> Path:
        """Where an uploaded file lies."""
        return self._files / file_id

    def part(self, upload_id: str, sha256: str) -> Path:
        """Where a part of an upload lies, by its content."""
        return self._parts / upload_id / sha256

    def model(self, artifact: str) -> Path:
        """The folder of a published model."""
        return self._models / artifact

    async def write_file(self, file_id: str, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Store a stream under an id. Either all of it is there in the end, or nothing.

        Raises LikenessError `storage_full` or `storage_failed`.
        """
        with _trouble_is_told():
            async with self._written(file_id, chunks) as (temporary, stored):
                _put_in_place(temporary, self.file(file_id))
        return stored

    def delete_file(self, file_id: str) -> None:
        """Remove an uploaded file's bytes; fine if they are gone. What can't be removed is swept later."""
        disk.remove(self.file(file_id))

    def old_files(self, *, older_than_seconds: float = _UNFINISHED_SECONDS) -> list[str]:
        """Ids of the files whose bytes have been there for so long that their row must be there too."""
        limit = time.time() - older_than_seconds
        return [path.name for path in self._files.iterdir() if _modified(path) < limit]

    @asynccontextmanager
    async def receiving_part(self, upload_id: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[ReceivedPart]:
        """Write a part. It is gone after the block unless `keep_part` was called in it.

        Raises LikenessError `storage_full` or `storage_failed`, also for what `keep_part` meets in the block.
        """
        with _trouble_is_told():
            async with self._written(upload_id, chunks) as (temporary, stored):
                yield ReceivedPart(temporary, stored)

    def keep_part(self, upload_id: str, part: ReceivedPart) -> None:
        """Put a received part in its place. Parts of the same content share one: a part sent twice takes no room.

        Raises OSError.
        """
        target = self.part(upload_id, part.stored.sha256)
        disk.make_directory(target.parent)
        # Stays also where the next line fails: another request may have been promised these very bytes.
        part.path.rename(target)
        disk.force_directory(target.parent)

    async def assemble(
        self, file_id: str, upload_id: str, parts: Sequence[StoredFile], md5: str | None = None
    ) -> StoredFile:
        """Store the parts of an upload, in the order given, as one file. All of it is there in the end, or nothing.

        Raises LikenessError `artifact_corrupt` for a part that is gone or not what was received, `checksum_mismatch`
        unless the whole has the MD5 given, `storage_full` or `storage_failed`.
        """
        paths = [(self.part(upload_id, part.sha256), part.sha256) for part in parts]
        # Closed here, and not some time later: a disk that is full ends the writing in the middle of a part.
        async with aclosing(_verified_chunks(paths, md5)) as chunks:
            return await self.write_file(file_id, chunks)

    def uploads_with_parts(self) -> list[str]:
        """Ids of the uploads that bytes are kept for."""
        return [path.name for path in self._parts.iterdir()]

    def delete_parts(self, upload_id: str) -> None:
        """Remove all parts of an upload; fine if they are gone."""
        disk.remove(self._parts / upload_id)

    @asynccontextmanager
    async def _written(self, name: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[Path, StoredFile]]:
        """A temporary file with the stream in it, forced to disk; to be renamed in the block, else it is removed."""
        temporary = self.unfinished / f"{name}-{secrets.token_hex(4)}"
        try:
            with temporary.open("wb") as target:
                digest, size = hashlib.sha256(), 0
                async for chunk in chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    await to_thread.run_sync(target.write, chunk)
                await to_thread.run_sync(_flush_to_disk, target)
            yield temporary, StoredFile(size, digest.hexdigest())
        finally:
            disk.remove(temporary)

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

        `name` begins the name of the folder until then. Raises AlreadyPublishedError, and OSError as the file system
        does; then nothing is published.
        """
        temporary = self.unfinished / f"{name}-{secrets.token_hex(4)}"
        temporary.mkdir()
        try:
            yield temporary
            manifests.write(temporary)
            _publish(temporary, target)
        finally:
            disk.remove(temporary)

    @contextmanager
    def publishing_once(self, target: Path, *, name: str) -> Iterator[Path]:
        """Like `publishing`, for what is the same whoever writes it: a whole one that is there already stays."""
        if not manifests.is_whole(target):
            disk.remove(target)
        with suppress(AlreadyPublishedError), self.publishing(target, name=name) as folder:
            yield folder

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """An empty folder for temporary files, gone after the block. One process at a time may use a name.

        What a process left that was killed in its block is removed first.
        """
        folder = self.unfinished / f"{name}-scratch"
        disk.remove(folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            disk.remove(folder)

    def models(self) -> list[str]:
        """The names of all published models."""
        return [path.name for path in self._models.iterdir()]

    def damage_of(self, artifact: str, *, weights_sha256: str | None = None) -> str | None:
        """What is wrong with a published model's folder, in words; None if it is as it was written.

        weights_sha256: what the model's row has, which no folder of another model can have. Raises OSError where
        the disk can't be read.
        """
        folder = self.model(artifact)
        wrong = manifests.differing(folder)
        if not wrong and weights_sha256 not in (None, manifests.recorded(folder).get(_WEIGHTS)):
            wrong = [f"{_WEIGHTS} is another model's"]
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return ", ".join(wrong[:3]) + more if wrong else None

    def card(self, artifact: str) -> str:
        """The model card in a published model's folder, if it has one.

        Raises FileNotFoundError, and LikenessError `artifact_corrupt` for one that is not as it was written.
        """
        path = self.model(artifact) / _CARD
        try:
            promised = manifests.recorded(path.parent).get(_CARD)
        except manifests.ManifestError as error:
            raise corrupt_model(artifact, str(error)) from error
        if promised is None:
            raise FileNotFoundError(path)
        if path.is_symlink() or not path.is_file() or manifests.sha256(path) != promised:
            raise corrupt_model(artifact, f"{_CARD} differs from its checksum")
        return path.read_text("utf-8")

    def delete_model(self, artifact: str) -> bool:
        """Remove a published model's folder. Whether it is gone."""
        return disk.remove(self.model(artifact))

    def sweep_unfinished(self, *, older_than_seconds: float = _UNFINISHED_SECONDS) -> int:
        """Remove what crashed writers left behind. Returns how many leftovers there were."""
        limit = time.time() - older_than_seconds
        leftovers = [path for path in self.unfinished.iterdir() if _modified(path) < limit]
        return sum(disk.remove(path) for path in leftovers)


def corrupt_model(name: str, damage: str) -> LikenessError:
    """The refusal of a model whose files are not as they were written."""
    return LikenessError(
        "artifact_corrupt",
        f"The stored model {name} is damaged ({damage}); it is not served. Restore it from a backup or train it again.",
        headers={"Retry-After": "60", "x-should-retry": "false"},
    )


async def _verified_chunks(paths: Sequence[tuple[Path, str]], md5: str | None) -> AsyncGenerator[bytes, None]:
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


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # its writer has just finished
        return math.inf


def _flush_to_disk(target: object) -> None:
    target.flush()  # type: ignore[attr-defined]
    os.fsync(target.fileno())  # type: ignore[attr-defined]


def _put_in_place(temporary: Path, target: Path) -> None:
    """Give a file that is on the disk a name that nothing has, for good. Raises OSError; then nothing has it."""
    try:
        temporary.rename(target)
        disk.force_directory(target.parent)
    except OSError:  # also of a rename that was done and told as failed
        disk.remove(target)
        raise


def _publish(temporary: Path, target: Path) -> None:
    """Give a folder that is on the disk its name, for good. Raises OSError; then it has the old one."""
    try:
        temporary.rename(target)
        disk.force_directory(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise AlreadyPublishedError(errno.EEXIST, "is published already", target.name) from error
        with suppress(OSError):  # also of a rename that was done and told as failed
            target.rename(temporary)
        raise


@contextmanager
def failing_disk_is_told() -> Iterator[None]:
    """What a disk that fails raises in the block becomes LikenessError `storage_failed`."""
    try:
        yield
    except OSError as error:
        if not disk.is_failing(error):
            raise
        log.error("disk_failed", reason=error.strerror, path=str(error.filename))
        raise LikenessError(
            "storage_failed",
            f"The disk that holds files and models failed ({error.strerror}); nothing was changed. Try again; "
            "if it goes on, see to the disk.",
            headers={"Retry-After": "60"},
        ) from error


@contextmanager
def _trouble_is_told() -> Iterator[None]:
    try:
        with failing_disk_is_told():
            yield
    except OSError as error:
        if not disk.is_full(error):
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
