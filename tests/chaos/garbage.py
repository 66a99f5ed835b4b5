"""The product's own sweep, made now and for everything that is old enough at rest: then nothing may be left over."""

from __future__ import annotations

from storage import checkpoints, files, uploads
from storage.artifacts import ArtifactStore
from storage.database import Database
from tests.chaos.fleet import Fleet


def collect_garbage(fleet: Fleet) -> None:
    """Sweep what crashed writers left behind. Only for a fleet at rest: nothing may be written meanwhile."""
    artifacts = ArtifactStore(fleet.data / "artifacts")
    database = Database(fleet.postgres.url, pool_size=1)
    try:
        artifacts.sweep_unfinished(older_than_seconds=0)
        with database.session_across_teams() as session:
            checkpoints.sweep(session, artifacts)
            uploads.expire(session)
            pending, known = uploads.pending_ids(session), files.ids(session)
        for upload_id in set(artifacts.uploads_with_parts()) - set(pending):
            artifacts.delete_parts(upload_id)
        for file_id in set(artifacts.old_files(older_than_seconds=0)) - known:
            artifacts.delete_file(file_id)
    finally:
        database.dispose()
