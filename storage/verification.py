"""Everything stored, held against what the database and the manifests say of it: what is wrong, and what to do.

Nothing is changed but what rows say of models (`storage.model_folders`). May run beside everything else: what is
deleted meanwhile is no finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from api_schemas.jobs import UNENDED
from storage import manifests, ownership
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.model_folders import ModelFolders
from storage.tables import File, Job, Model, Upload, UploadPart


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be. `remedy` is a sentence for whoever runs the installation."""

    kind: str
    name: str
    what: str
    remedy: str


class Verification:
    """One look at all of it; `looked_at` counts by kind what there was to look at."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts
        self._folders = ModelFolders(database, artifacts)
        self.looked_at: Counter[str] = Counter()

    def findings(self) -> Iterator[Finding]:
        """What is wrong, as it is found; every byte is read, which takes as long as the disk does."""
        yield from self._owner()
        # Looked at again at the end: a training may be removing one at this moment.
        doubtful = [folder for folder in self._going_on() if self._wrong(folder) is not None]
        yield from self._files()
        yield from self._parts()
        yield from self._models()
        for folder in doubtful:
            if folder.exists() and (what := self._wrong(folder)) is not None:
                yield Finding("checkpoint", f"{folder.parent.name}/{folder.name}", what, _PASSED_OVER)

    def _owner(self) -> Iterator[Finding]:
        with self._database.session_across_teams() as session:
            anothers = ownership.is_anothers(session, self._artifacts)
        if anothers:
            yield Finding("folder", str(self._artifacts.root), "belongs to another database", _ANOTHERS)

    def _files(self) -> Iterator[Finding]:
        with self._database.session_across_teams() as session:
            rows = session.execute(select(File.id, File.bytes, File.sha256).where(File.deleted_at.is_(None))).all()
        for row in rows:
            self.looked_at["file"] += 1
            what = _damage(self._artifacts.file(row.id), row.bytes, row.sha256)
            if what is not None and self._is_there(File, row.id):
                remedy = f"Restore {self._path(self._artifacts.file(row.id))} from a backup, or upload the file again."
                yield Finding("file", row.id, what, remedy)

    def _parts(self) -> Iterator[Finding]:
        pending = select(UploadPart.upload_id, UploadPart.id, UploadPart.bytes, UploadPart.sha256).join(
            Upload, Upload.id == UploadPart.upload_id
        )
        with self._database.session_across_teams() as session:
            rows = session.execute(pending.where(Upload.status == "pending")).all()
        for row in rows:
            self.looked_at["part"] += 1
            what = _damage(self._artifacts.part(row.upload_id, row.sha256), row.bytes, row.sha256)
            if what is not None and self._is_pending(row.upload_id):
                yield Finding("part", row.id, what, "Nothing: completing the upload tells its client to send it again.")

    def _models(self) -> Iterator[Finding]:
        with self._database.session_across_teams() as session:
            rows = session.execute(
                select(Model.id, Model.artifact, Model.weights_sha256, Model.job_id).where(Model.deleted_at.is_(None))
            ).all()
        for row in rows:
            self.looked_at["model"] += 1
            what = self._model_damage(row.id, row.artifact, row.weights_sha256)
            if what is not None and self._is_there(Model, row.id):
                folder = self._path(self._artifacts.model(row.artifact))
                remedy = f"It is not served. Restore {folder} from a backup, or train it again as job {row.job_id} did."
                yield Finding("model", row.id, what, remedy)

    def _model_damage(self, name: str, artifact: str, weights_sha256: str) -> str | None:
        try:
            return self._folders.judged(name, artifact, weights_sha256=weights_sha256)
        except OSError as error:
            return _unreadable(error)

    def _going_on(self) -> Iterator[Path]:
        """The folders that unfinished jobs would go on from: checkpoints, and trials of a search."""
        with self._database.session_across_teams() as session:
            unfinished = session.scalars(select(Job.id).where(Job.state.in_(UNENDED))).all()
        for job_id in unfinished:
            root = self._artifacts.checkpoints / job_id
            for folder in sorted(root.iterdir()) if root.is_dir() else ():
                self.looked_at["checkpoint"] += 1
                yield folder

    def _wrong(self, folder: Path) -> str | None:
        try:
            return ", ".join(manifests.differing(folder)) or None
        except OSError as error:
            return _unreadable(error)

    def _is_there(self, table: type[File] | type[Model], name: str) -> bool:
        with self._database.session_across_teams() as session:
            return session.scalar(select(table.id).where(table.id == name, table.deleted_at.is_(None))) is not None

    def _is_pending(self, upload_id: str) -> bool:
        with self._database.session_across_teams() as session:
            return session.scalar(select(Upload.status).where(Upload.id == upload_id)) == "pending"

    def _path(self, path: Path) -> str:
        return str(path.relative_to(self._artifacts.root.parent))


_PASSED_OVER = "Nothing: its job passes it over, and goes on from the one before or begins again."
_ANOTHERS = (
    "Nothing is removed from it. Set DATABASE_URL to its database, or restore that from a dump. To keep to this one, "
    f"remove the file {ownership.OWNER!r} in it: files that this one has no row of are then removed."
)


def _damage(path: Path, size: int, sha256: str) -> str | None:
    """What is wrong with a file's bytes, in words."""
    try:
        if path.is_symlink() or not path.is_file():
            return "is no regular file" if path.is_symlink() or path.exists() else "is missing"
        if (found := path.stat().st_size) != size:
            return f"has {found} bytes instead of {size}"
        return None if manifests.sha256(path) == sha256 else "differs from its checksum"
    except OSError as error:
        return _unreadable(error)


def _unreadable(error: OSError) -> str:
    return f"can't be read ({error.strerror or error})"
