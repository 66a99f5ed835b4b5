"""The callables a worker runs. Each runs in a child of the worker, and may be delivered twice."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from storage import attempts, checkpoints, queue, scheduling
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.processes import start_child, stop_child
from storage.settings import StorageSettings
from workers import exit_codes
from workers.lease import Lease, LeaseLostError
from workers.patience import patiently
from workers.training_command import training_command

log = structlog.get_logger("likeness.tasks")

_LOOK_EVERY_SECONDS = 0.25
#: How long a training may take to stop when asked: a step and a checkpoint.
_GRACE_SECONDS = 10.0


def train(job_id: str, attempt: int) -> None:
    """Run one attempt of the job whose turn it is: take its lease, start the training, see to it that the job ends.

    The arguments say who asked for a worker. Does nothing when no job is queued, as after a second delivery.
    """
    worker_id = os.environ.get("RQ_WORKER_ID", f"pid-{os.getpid()}")
    settings = StorageSettings().with_running_servers()
    # SIGTERM is heard before the lease is taken: in between it would leave the job to its lease's end.
    with _database() as database, _hearing_sigterm() as stop:
        job = scheduling.take(database, worker_id)
        if job is None:
            log.info("delivery_ignored", job=job_id, attempt=attempt, reason="no job is queued")
            return
        with structlog.contextvars.bound_contextvars(job=job.id, attempt=job.attempt):
            _train(database, job.id, job.attempt, worker_id, stop)
            # If it is queued again, the next free worker is to hear of it at once.
            queue.dispatch_soon(database, queue.connect(settings.required_redis_url))


def _train(database: Database, job_id: str, attempt: int, worker_id: str, stop: threading.Event) -> None:
    code = _watch(_start_training(job_id, attempt), Lease(database, job_id, attempt, worker_id), stop)
    _settle(database, job_id, attempt, code, stopping=stop.is_set())
    _tidy(database, job_id)


@contextmanager
def _hearing_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, in place of ending the process."""
    stop = threading.Event()

    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = signal.signal(signal.SIGTERM, ask_to_stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


def _start_training(job_id: str, attempt: int) -> subprocess.Popen[bytes]:
    # Same process group as this one: whoever kills the group kills the training too.
    return start_child(
        training_command(job_id, attempt, processes=StorageSettings().training_processes),
        on_parent_death=signal.SIGKILL,
        new_group=False,
        # Threads that spin while they wait are ruinous as soon as anybody else works on the same cores.
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
    )


def _watch(training: subprocess.Popen[bytes], lease: Lease, stop: threading.Event) -> int:
    """Keep the lease until the training has ended; its exit code, negative for a signal."""
    while True:
        try:
            return training.wait(timeout=_LOOK_EVERY_SECONDS)
        except subprocess.TimeoutExpired:
            if stop.is_set():
                return stop_child(training, sig=signal.SIGTERM, grace_seconds=_GRACE_SECONDS)
        try:
            if lease.keep():  # to pause; however long its step takes, the lease is kept
                training.send_signal(signal.SIGTERM)
        except LeaseLostError as lost:
            log.info("lease_over", reason=str(lost))
            stop_child(training, sig=signal.SIGTERM, grace_seconds=_GRACE_SECONDS)
            return exit_codes.STALE


def _settle(database: Database, job_id: str, attempt: int, code: int, *, stopping: bool) -> None:
    """See to it that the job is in a state that says what happened, whatever the process left behind."""
    if code == exit_codes.STALE:
        return

    def write() -> None:
        with database.session_across_teams() as session:
            _settle_running(session, job_id, attempt, code, stopping=stopping)

    try:
        patiently(write)
    except attempts.StaleAttempt:
        log.info("training_ended", exit_code=code)


def _tidy(database: Database, job_id: str) -> None:
    """Remove the checkpoints of a job that has ended, whoever ended it. If it fails, the reconciler does it later."""
    artifacts = ArtifactStore(StorageSettings().artifacts_dir)
    try:
        with database.session_across_teams() as session:
            checkpoints.remove_if_ended(session, artifacts, job_id)
    except OperationalError as error:
        log.warning("checkpoints_left", reason=type(error).__name__)


def _settle_running(session: Session, job_id: str, attempt: int, code: int, *, stopping: bool) -> None:
    # Killed by SIGTERM: it came before the training process could hear it.
    if code in (exit_codes.INTERRUPTED, -signal.SIGTERM) or stopping:
        log.info("job_given_back")
        attempts.requeue(session, job_id, attempt, "The worker is shutting down")
    elif code == exit_codes.DATABASE_AWAY:
        attempts.requeue(session, job_id, attempt, "PostgreSQL was away for too long")
    elif code < 0:
        name = signal.Signals(-code).name
        attempts.crashed(session, job_id, attempt, f"The training process was killed by {name}")
    else:
        attempts.fail(
            session, job_id, attempt, "training_crashed",
            f"The training process ended with exit code {code}. "
            "This is a defect of the service: please report it with the worker's log.",
        )  # fmt: skip


def prepare(job_id: str) -> None:
    """Tokenize the files of a job and queue it, unless they can't be trained on; or whatever else is next."""
    _work_on_data(job=job_id)


def validate_file(file_id: str) -> None:
    """Read an uploaded file row by row, keep the verdict, and release the jobs that waited for it; or what is next."""
    _work_on_data(file=file_id)


def _work_on_data(**asked_for: str) -> None:
    """Work on the file or the job whose turn it is, and hand over what became ready by it."""
    settings = StorageSettings().with_running_servers()
    with _database() as database, _hearing_sigterm() as stop, scheduling.claim(database) as task:
        if task is None:
            log.info("delivery_ignored", **asked_for, reason="no file and no job is without a worker")
            return
        kind, work = _data_work(task.name)
        [name] = map(str, task.arguments)
        with structlog.contextvars.bound_contextvars(**{kind: name}):
            work(settings, database, name, stop)
        queue.dispatch_soon(database, queue.connect(settings.required_redis_url))


def _data_work(task: str) -> tuple[str, Callable[[StorageSettings, Database, str, threading.Event], None]]:
    # Imported here and not above: the worker, of which this is a child, lives longer and needs none of it.
    if task == queue.PREPARE:
        from workers import preparing

        return "job", preparing.prepare
    from workers import validating

    return "file", validating.validate


@contextmanager
def _database() -> Iterator[Database]:
    """A database of this child's own: connections don't survive a fork."""
    settings = StorageSettings().with_running_servers()
    database = Database(settings.required_database_url, pool_size=2)
    try:
        yield database
    finally:
        database.dispose()
