"""Mends what crashes leave behind: expired leases, tasks that the queue lost, bytes that nobody owns.

One process does this at a time, elected by an advisory lock; what it does is safe even if two did. Run as
`python -m workers.reconciler`, which is what `likeness up` and `likeness reconcile` do.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import structlog
from redis import Redis, RedisError
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from storage import attempts, checkpoints, files, garbage, idempotency, limits, ownership, queue, scheduling, uploads
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.leadership import Leadership
from storage.logs import configure_logging
from storage.settings import NoServersError, StorageSettings

log = structlog.get_logger("likeness.reconciler")

_SWEEP_EVERY_SECONDS = 600.0
_ANSWER_SECONDS = 10.0


class Reconciler:
    """The mending itself: what `tick` does is waited for, what `sweep` does isn't."""

    def __init__(
        self,
        database: Database,
        redis: Redis,
        artifacts: ArtifactStore,
        *,
        derived: tuple[Path, int] | None = None,
        retention: garbage.Retention | None = None,
    ) -> None:
        """derived: where the derived data is, and how many bytes of it are kept; None leaves it alone."""
        self._database = database
        self._redis = redis
        self._artifacts = artifacts
        self._derived = derived
        self._retention = retention or garbage.Retention()
        self._swept = -_SWEEP_EVERY_SECONDS

    def tick(self) -> None:
        """Rescue, end what is overdue, dispatch, and enqueue again.

        Raises OperationalError or RedisError when a server is away.
        """
        with self._database.session_across_teams() as session:
            expired, overdue = attempts.expired(session), limits.overdue(session)
        for job_id, attempt in expired:
            self._one("job_rescued", job_id, partial(attempts.rescue, attempt=attempt))
        for job_id in overdue:
            self._one("overdue_job_ended", job_id, limits.end)
        queue.dispatch(self._database, self._redis)
        self._enqueue_lost()

    def _one(self, event: str, job_id: str, mend: Callable[[Session, str], bool]) -> None:
        """Mend one job, in a transaction of its own: one that can't be mended keeps nobody else waiting."""
        try:
            with self._database.session_across_teams() as session:
                mended = mend(session, job_id)
        except OperationalError:
            raise
        except Exception:  # the edge of a job: without it one odd row would stop all mending
            log.exception("job_not_mended", job=job_id, wanted=event)
            return
        if mended:
            log.warning(event, job=job_id)

    def _enqueue_lost(self) -> None:
        """Hand over again what ought to be in the queue and isn't, for instance because Valkey was emptied."""
        lost = scheduling.enqueue_lost(self._database, self._redis)
        if lost:
            log.warning("tasks_enqueued_again", count=lost)

    def sweep(self) -> None:
        """Remove what nobody owns, now and then. Raises as `tick` does."""
        if time.monotonic() - self._swept < _SWEEP_EVERY_SECONDS:
            return
        self._swept = time.monotonic()
        self._sweep_derived()
        with self._database.session_across_teams() as session:
            idempotency.sweep(session)
        if not self._owns_artifacts():
            log.error("artifacts_of_another_database", remedy="`likeness verify` says what to do; nothing is removed")
            return
        leftovers = self._artifacts.sweep_unfinished() + self._sweep_parts() + self._sweep_files()
        leftovers += self._sweep_checkpoints()
        leftovers += garbage.sweep(self._database, self._artifacts, self._retention)
        if leftovers:
            log.info("leftovers_removed", count=leftovers)

    def _owns_artifacts(self) -> bool:
        with self._database.session_across_teams() as session:
            return ownership.claim(session, self._artifacts)

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
        return checkpoints.sweep(self._database, self._artifacts)

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


def run(reconciler: Reconciler, leadership: Leadership, stop: threading.Event, *, tick_seconds: float) -> None:
    """Tick until told to stop. Servers that are away are waited for."""
    while not stop.is_set():
        for work in (reconciler.tick, reconciler.sweep):
            try:
                if leadership.is_mine():
                    work()
            except (OperationalError, RedisError) as error:
                log.warning("reconciling_postponed", reason=type(error).__name__)
            except OSError as error:  # whatever the disk does, jobs are rescued
                log.error("sweeping_failed", reason=error.strerror, path=error.filename)
        stop.wait(tick_seconds)
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
    database = Database(settings.required_database_url, pool_size=2, answer_seconds=_ANSWER_SECONDS)
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
        retention=garbage.Retention.of(settings),
    )
    run(reconciler, Leadership(database), stop, tick_seconds=settings.tick_seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
