"""Mends what crashes leave behind: expired leases, tasks that the queue lost, bytes that nobody owns.

One process does this at a time, elected by an advisory lock; what it does is safe even if two did. Run as
`python -m workers.reconciler`, which is what `likeness up` and `likeness reconcile` do.
"""

import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import structlog
from redis import Redis, RedisError
from sqlalchemy.exc import OperationalError

from storage import attempts, checkpoints, files, queue, scheduling, uploads
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.leadership import Leadership
from storage.logs import configure_logging
from storage.settings import NoServersError, StorageSettings

log = structlog.get_logger("likeness.reconciler")

TICK_SECONDS = 2.0
_SWEEP_EVERY_SECONDS = 600.0


class Reconciler:
    """The mending itself; `tick` does all of it once."""

    def __init__(
        self, database: Database, redis: Redis, artifacts: ArtifactStore, *, derived: tuple[Path, int] | None = None
    ) -> None:
        """derived: where the derived data is, and how many bytes of it are kept; None leaves it alone."""
        self._database = database
        self._redis = redis
        self._artifacts = artifacts
        self._derived = derived
        self._swept = -_SWEEP_EVERY_SECONDS

    def tick(self) -> None:
        """Rescue, dispatch, and enqueue again. Raises OperationalError or RedisError when a server is away."""
        with self._database.session_across_teams() as session:
            rescued = attempts.rescue_expired(session)
        if rescued:
            log.warning("jobs_rescued", count=rescued)
        queue.dispatch(self._database, self._redis)
        self._enqueue_lost()
        self._sweep()

    def _enqueue_lost(self) -> None:
        """Hand over again what ought to be in the queue and isn't, for instance because Valkey was emptied."""
        lost = scheduling.enqueue_lost(self._database, self._redis)
        if lost:
            log.warning("tasks_enqueued_again", count=lost)

    def _sweep(self) -> None:
        if time.monotonic() - self._swept < _SWEEP_EVERY_SECONDS:
            return
        self._swept = time.monotonic()
        leftovers = self._artifacts.sweep_unfinished() + self._sweep_parts() + self._sweep_files()
        leftovers += self._sweep_checkpoints()
        if leftovers:
            log.info("leftovers_removed", count=leftovers)
        self._sweep_derived()

    def _sweep_parts(self) -> int:
        """Remove the parts of uploads that have ended: expired, or left behind by who ended them."""
        # The folder is looked at first: what comes later belongs to an upload that is pending.
        held = self._artifacts.uploads_with_parts()
        with self._database.session_across_teams() as session:
            uploads.expire(session)
            pending = uploads.pending_ids(session)
        ended = [upload_id for upload_id in held if upload_id not in pending]
        for upload_id in ended:
            self._artifacts.delete_parts(upload_id)
        return len(ended)

    def _sweep_checkpoints(self) -> int:
        """Remove the checkpoints of jobs that have ended, because who ended them was killed."""
        with self._database.session_across_teams() as session:
            return checkpoints.sweep(session, self._artifacts)

    def _sweep_files(self) -> int:
        """Remove the bytes of files that have no row, because who stored them or deleted the row was killed."""
        old = self._artifacts.old_files()
        with self._database.session_across_teams() as session:
            known = files.ids(session)
        unknown = [file_id for file_id in old if file_id not in known]
        for file_id in unknown:
            self._artifacts.delete_file(file_id)
        return len(unknown)

    def _sweep_derived(self) -> None:
        """Keep the tokenized datasets within their bounds."""
        if self._derived is None:
            return
        try:
            # Here and not above: it needs numpy, which a machine that only reconciles may lack.
            from workers.data import derived
        except ModuleNotFoundError:
            return
        removed = derived.sweep(*self._derived)
        if removed:
            log.info("derived_data_removed", bytes=removed)


def run(reconciler: Reconciler, leadership: Leadership, stop: threading.Event) -> None:
    """Tick until told to stop. Servers that are away are waited for."""
    while not stop.is_set():
        try:
            if leadership.is_mine():
                reconciler.tick()
        except (OperationalError, RedisError) as error:
            log.warning("reconciling_postponed", reason=type(error).__name__)
        stop.wait(TICK_SECONDS)
    leadership.give_up()


def main() -> int:
    """Reconcile until SIGTERM or SIGINT. Returns the process' exit code."""
    settings = StorageSettings()
    configure_logging(settings.log_level)
    try:
        settings = settings.with_running_servers()
    except NoServersError as error:
        log.error("reconciler_not_started", reason=str(error))
        return 2
    database = Database(settings.required_database_url, pool_size=2)
    stop = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    redis = queue.connect(settings.required_redis_url)
    reconciler = Reconciler(
        database,
        redis,
        ArtifactStore(settings.artifacts_dir),
        derived=(settings.derived_dir, settings.derived_max_bytes),
    )
    run(reconciler, Leadership(database), stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
