"""The callables a worker runs. Each runs in a child of the worker, and may be delivered twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypeVar

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from storage import attempts, checkpoints, files, limits, preparations, queue
from storage.artifacts import ArtifactStore
from storage.claims import claimed
from storage.database import Database
from storage.job_moves import Death
from storage.processes import start_child
from storage.settings import StorageSettings
from workers import exit_codes
from workers.attendance import attended
from workers.deaths import death_of
from workers.lease import KeptLease
from workers.patience import patiently
from workers.shared_page import SharedPage
from workers.stopping import StopRequest, hearing_signals
from workers.watch import Ending, Reason, watch

Answer = TypeVar("Answer")

log = structlog.get_logger("likeness.tasks")

#: How long a worker that is to stop waits for a database that is away, to give its job back.
_SECONDS_TO_GIVE_BACK = 2.0


def train(job_id: str, attempt: int) -> None:
    """Run one attempt of a job: take its lease, start the training process, and see to it that the job ends.

    Does nothing when the attempt isn't queued any more, as after a second delivery.
    """
    settings = StorageSettings()
    worker_id = os.environ.get("RQ_WORKER_ID", f"pid-{os.getpid()}")
    # Signals are heard before the lease is taken: in between they would leave the job to its lease's end.
    with (
        structlog.contextvars.bound_contextvars(job=job_id, attempt=attempt),
        _database() as database,
        hearing_signals() as stop,
    ):
        taken = time.monotonic()
        with database.session_across_teams() as session:
            job = attempts.start(session, job_id, attempt, worker_id, lease_seconds=settings.lease_seconds)
        if job is None:
            log.info("delivery_ignored", reason="the attempt is not queued")
            return
        page = SharedPage.new()
        # Before the lease's thread begins: a process of several threads should not fork.
        training = _start_training(job_id, attempt, page.environment)
        with KeptLease(
            database, job_id, attempt, worker_id, seconds=settings.lease_seconds, taken=taken, page=page
        ) as lease:
            ending = watch(
                training, lease, stop, stop_seconds=settings.stop_seconds, on_overdue=lambda: _end(database, job_id)
            )
            log.info("training_ended", **ending._asdict())
            _settle(database, job_id, attempt, ending, stop, after_step=page.step or None)
        page.close()
        _tidy(database, job_id)


def _start_training(job_id: str, attempt: int, page: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # Same process group as this one: whoever kills the group kills the training too.
    return start_child(
        [sys.executable, "-m", "workers.training.run", job_id, str(attempt)],
        on_parent_death=signal.SIGKILL,
        new_group=False,
        # Threads that spin while they wait are ruinous as soon as anybody else works on the same cores.
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **page},
    )


def _end(database: Database, job_id: str) -> bool:
    """End a job that has taken longer than it may. Returns whether that was possible."""
    try:
        with database.session_across_teams() as session:
            return limits.end(session, job_id)
    except OperationalError as error:
        log.warning("overdue_job_not_ended", reason=type(error).__name__)
        return False


def _settle(
    database: Database, job_id: str, attempt: int, ending: Ending, stop: StopRequest, *, after_step: int | None
) -> None:
    """See to it that the job is in a state that says what happened, whatever the process left behind.

    A database that is away is waited for: without it there is nothing else to do. Then the lease's end must speak for
    the job only if the worker is to stop meanwhile.
    """
    if ending.code == exit_codes.STALE or ending.reason == Reason.LEASE_LOST:
        return
    began = time.monotonic()

    def is_hopeless() -> bool:
        return stop.soon.is_set() and time.monotonic() - began > _SECONDS_TO_GIVE_BACK

    def write() -> None:
        with database.session_across_teams() as session:
            _settle_running(session, job_id, attempt, ending, after_step)

    try:
        patiently(write, until=is_hopeless)
    except attempts.StaleAttempt:
        log.info("job_left_as_it_is")
    except OperationalError as error:
        log.warning("job_left_to_its_lease", reason=type(error).__name__)


def _tidy(database: Database, job_id: str) -> None:
    """Remove the checkpoints of a job that has ended, whoever ended it. If it fails, the reconciler does it later."""
    artifacts = ArtifactStore(StorageSettings().artifacts_dir)
    try:
        with database.session_across_teams() as session:
            checkpoints.remove_if_ended(session, artifacts, job_id)
    except OperationalError as error:
        log.warning("checkpoints_left", reason=type(error).__name__)


def _settle_running(session: Session, job_id: str, attempt: int, ending: Ending, after_step: int | None) -> None:
    # Killed by SIGTERM: it came before the training process could hear it.
    left = ending.code in (exit_codes.INTERRUPTED, exit_codes.DATABASE_AWAY, -signal.SIGTERM) or ending.killed
    if left or ending.reason in (Reason.WORKER_STOPS, Reason.AT_ONCE, Reason.DATABASE_AWAY):
        attempts.requeue(session, job_id, attempt, _why_given_back(ending))
    elif ending.code < 0:
        number, oom = -ending.code, ending.out_of_memory
        death = death_of("The training process", number, after_step=after_step, out_of_memory=oom)
        attempts.died(session, job_id, attempt, death)
    else:
        attempts.fail(
            session, job_id, attempt, "training_crashed",
            f"The training process ended with exit code {ending.code}. "
            "This is a defect of the service: please report it with the worker's log.",
        )  # fmt: skip


def _why_given_back(ending: Ending) -> str:
    if ending.reason in (Reason.WORKER_STOPS, Reason.AT_ONCE):
        return "The worker is shutting down"
    if ending.reason == Reason.DATABASE_AWAY:
        return "The worker could not renew its lease in time"
    if ending.code == exit_codes.DATABASE_AWAY:
        return "PostgreSQL was away for too long"
    return "The training was interrupted"


def settle_abandoned(job_id: str, attempt: int, worker_id: str, death: Death | None) -> None:
    """Say for a child that ended without a word what has become of its job; None: it was told to end.

    If nobody can be told, the job waits for its lease's end.
    """
    with structlog.contextvars.bound_contextvars(job=job_id, attempt=attempt), _database() as database:
        try:
            with database.session_across_teams() as session:
                attempts.abandoned(session, job_id, attempt, worker_id, death)
            log.warning("job_settled_for_its_task", death=str(death))
        except attempts.StaleAttempt:
            log.info("job_left_as_it_is")
        except OperationalError as error:
            log.warning("job_left_to_its_lease", reason=type(error).__name__)


def prepare(job_id: str) -> None:
    """Tokenize the files of a job and queue it, unless they can't be trained on."""
    # Here and not above: the worker, of which this is a child, lives longer and needs none of it.
    from workers import preparing

    task = _Task(preparing.prepare, preparations.is_under_way, preparations.give_back)
    _unless_claimed("job", job_id, task)


def validate_file(file_id: str) -> None:
    """Read an uploaded file row by row, keep the verdict, and release the jobs that waited for it."""
    # Here for the same reason.
    from workers import validating

    task = _Task(validating.validate, files.is_unjudged, files.give_back_validation)
    _unless_claimed("file", file_id, task)


class _Task(NamedTuple):
    """What is done to a job or a file by the child of a worker that has claimed it."""

    work: Callable[[StorageSettings, Database, str, threading.Event], None]
    #: Whether the work is still needed.
    is_needed: Callable[[Session, str], bool]
    #: Take back that it was begun.
    give_back: Callable[[Session, str], None]


def _unless_claimed(kind: Literal["job", "file"], name: str, task: _Task) -> None:
    """Work on a job or a file, unless another worker has it, and hand over what became ready by it."""
    settings = StorageSettings().with_running_servers()
    with (
        structlog.contextvars.bound_contextvars(**{kind: name}),
        _database() as database,
        hearing_signals() as stop,
        claimed(database, name) as mine,
    ):
        if not mine:
            log.info("delivery_ignored", reason=f"another worker has the {kind}")
            return
        with attended(
            stop,
            stop_seconds=settings.stop_seconds,
            is_over=lambda: not _in_session(database, task.is_needed, name),
            give_back=lambda: _in_session(database, task.give_back, name),
        ):
            task.work(settings, database, name, stop.soon)
        queue.dispatch_soon(database, queue.connect(settings.required_redis_url))


def _in_session(database: Database, ask: Callable[[Session, str], Answer], name: str) -> Answer:
    with database.session_across_teams() as session:
        return ask(session, name)


@contextmanager
def _database() -> Iterator[Database]:
    """A database of this child's own: connections don't survive a fork."""
    settings = StorageSettings().with_running_servers()
    database = Database(settings.required_database_url, pool_size=2)
    try:
        yield database
    finally:
        database.dispose()
