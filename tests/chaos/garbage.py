"""The product's own sweep, made now and for everything, however young: then nothing may be left over."""

from __future__ import annotations

from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.garbage import Retention
from tests.chaos.fleet import Fleet
from workers.reconciler import Reconciler


class _Aged(ArtifactStore):
    """A store all of whose files are as old as they have to be."""

    def old_files(self, *, older_than_seconds: float = 0.0) -> list[str]:
        return super().old_files(older_than_seconds=0.0)

    def sweep_unfinished(self, *, older_than_seconds: float = 0.0) -> int:
        return super().sweep_unfinished(older_than_seconds=0.0)


def collect_garbage(fleet: Fleet) -> None:
    """Sweep what crashed writers left behind. Only for a fleet at rest: nothing may be written meanwhile."""
    database = Database(fleet.postgres.url, pool_size=1)
    try:
        with fleet.valkey.connect() as redis:
            Reconciler(
                database, redis, _Aged(fleet.data / "artifacts"), retention=Retention(deleted_model_seconds=0.0)
            ).sweep()
    finally:
        database.dispose()
