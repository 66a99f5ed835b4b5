"""The callables a worker runs. Each runs in a child of the worker, and may be delivered twice."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, TypeVar

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from storage import attempts, checkpoints, files, limits, preparations, queue, scheduling
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.held_lease import HeldLease
from storage.job_moves import Death
from storage.processes import start_child
from storage.settings import StorageSettings
from workers import exit_codes
from workers.attendance import attended
from workers.deaths import death_of
from workers.lease import KeptLease, answer_within
from workers.patience import patiently
from workers.shared_page import SharedPage
from workers.stopping import StopRequest, hearing_signals
from workers.training_command import training_command
from workers.training_environment import training_environment
from workers.watch import Ending, Reason, watch

Answer = TypeVar("Answer")

log = structlog.get_logger("likeness.tasks")

# A network that swallows what is said about a training must be noticed soon; what is said of data may be much.
_ANSWER_SECONDS = 4.0
_ANSWER_ON_DATA_SECONDS = 12.0
_CONNECT_SECONDS = 5.0
#: How long a worker that is to stop waits for a database that is away, to give its job back.
_SECONDS_TO_GIVE_BACK = 2.0


class _Attempt(NamedTuple):
    """The attempt that this process sees to."""

    job_id: str
    number: int


def train(job_id: str, attempt: int) -> None:
    """Run one attempt of the job whose turn it is: take its lease, start the training, see to it that the job ends.

    The arguments say who asked for a worker. Does nothing when no job is queued, as after a second delivery.
    """
    worker_id = os.environ.get("RQ_WORKER_ID", f"pid-{os.getpid()}")
    settings = StorageSettings().with_running_servers()
    # Signals are heard before the lease is taken: in between they would leave the job to its lease's end.
    with _database(settings, answer_seconds=_ANSWER_SECONDS) as database, hearing_signals() as stop:
        held = HeldLease(database, answer_seconds=answer_within(settings.lease_seconds))
        with ExitStack() as unless_taken:
            unless_taken.callback(held.close)
            taken = time.monotonic()
            job = scheduling.take(database, worker_id, lease_seconds=settings.lease_seconds)
            if job is None:
                log.info("delivery_ignored", job=job_id, attempt=attempt, reason="no job is queued")
                return
            unless_taken.pop_all()
        held.hold(job.id, job.attempt, worker_id)
        with structlog.contextvars.bound_contextvars(job=job.id, attempt=job.attempt):
            _train(settings, database, _Attempt(job.id, job.attempt), held, taken, stop)
            _tidy(settings, database, job.id)
            # If it is queued again, the next free worker is to hear of it at once.
            _hand_over(settings, database)


def _train(
    settings: StorageSettings, database: Database, attempt: _Attempt, held: HeldLease, taken: float, stop: StopRequest
) -> None:
    """taken: when the lease was asked for."""
    page = SharedPage.new()
    # Before the lease's thread begins: a process of several threads should not fork.
    training = _start_training(*attempt, page.environment)
    lease = KeptLease(held, seconds=settings.lease_seconds, taken=taken, page=page)
    with lease:
        ending = watch(
            training, lease, stop, stop_seconds=settings.stop_seconds, on_overdue=lambda: _end(database, attempt.job_id)
        )
        log.info("training_ended", **{**ending._asdict(), "reason": ending.reason.name.lower()})
        _settle(database, attempt, ending, stop, after_step=page.step or None)
    page.close()


def _start_training(job_id: str, attempt: int, page: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # Same process group as this one: whoever kills the group kills the training too.
    return start_child(
        training_command(job_id, attempt, processes=StorageSettings().training_processes),
        on_parent_death=signal.SIGKILL,
        new_group=False,
        env={**training_environment(), **page},
    )


def _end(database: Database, job_id: str) -> bool:
    """End a job that has taken longer than it may. Returns whether that was possible."""
    try:
        return _in_session(database, limits.end, job_id)
    except OperationalError as error:
        log.warning("overdue_job_not_ended", reason=type(error).__name__)
        return False


def _settle(
    database: Database, attempt: _Attempt, ending: Ending, stop: StopRequest, *, after_step: int | None
) -> None:
    """See to it that the job is in a state that says what happened, whatever the process left behind.

    A database that is away is waited for: without it there is nothing else to do. If the worker is to stop meanwhile,
    the job is left to its lease's end.
    """
    if ending.code == exit_codes.STALE or ending.reason == Reason.LEASE_LOST:
        return
    began = time.monotonic()

    def is_hopeless() -> bool:
        return stop.soon.is_set() and time.monotonic() - began > _SECONDS_TO_GIVE_BACK

    def write() -> None:
        with database.session_across_teams() as session:
            _settle_running(session, attempt, ending, after_step)

    try:
        patiently(write, until=is_hopeless)
    except attempts.StaleAttempt:
        log.info("job_left_as_it_is")
    except OperationalError as error:
        log.warning("job_left_to_its_lease", reason=type(error).__name__)


def _settle_running(session: Session, attempt: _Attempt, ending: Ending, after_step: int | None) -> None:
    # Killed by SIGTERM: it came before the training process could hear it.
    left = ending.code in (exit_codes.INTERRUPTED, exit_codes.DATABASE_AWAY, -signal.SIGTERM) or ending.killed
    if left or ending.reason in (Reason.WORKER_STOPS, Reason.AT_ONCE, Reason.DATABASE_AWAY):
        attempts.requeue(session, *attempt, _why_given_back(ending))
    elif ending.code < 0:
        number, oom = -ending.code, ending.out_of_memory
        death = death_of("The training process", number, after_step=after_step, out_of_memory=oom)
        attempts.died(session, *attempt, death)
    else:
        attempts.fail(
            session, *attempt, "training_crashed",
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


def _tidy(settings: StorageSettings, database: Database, job_id: str) -> None:
    """Remove the checkpoints of a job that has ended, whoever ended it. If it fails, the reconciler does it later."""
    artifacts = ArtifactStore(settings.artifacts_dir)
    try:
        checkpoints.remove_if_ended(database, artifacts, job_id)
    except OperationalError as error:
        log.warning("checkpoints_left", reason=type(error).__name__)


def settle_abandoned(worker_id: str, death: Death | None) -> None:
    """Say, for a child of a worker that was killed, what has become of the job it had; None: it was told to end.

    If nobody can be told, the job waits for its lease's end.
    """
    settings = StorageSettings().with_running_servers()
    with _database(settings, answer_seconds=_ANSWER_SECONDS) as database:
        try:
            with database.session_across_teams() as session:
                job_id = attempts.abandoned(session, worker_id, death)
            if job_id is not None:
                log.warning("job_settled_for_its_task", job=job_id, death=death and str(death))
                _hand_over(settings, database)
        except OperationalError as error:
            log.warning("job_left_to_its_lease", reason=type(error).__name__)


def prepare(job_id: str) -> None:
    """Tokenize the files of a job and queue it, unless they can't be trained on; or whatever else is next."""
    _work_on_data(job=job_id)


def validate_file(file_id: str) -> None:
    """Read an uploaded file row by row, keep the verdict, and release the jobs that waited for it; or what is next."""
    _work_on_data(file=file_id)


def _work_on_data(**asked_for: str) -> None:
    """Work on the file or the job whose turn it is, and hand over what became ready by it."""
    settings = StorageSettings().with_running_servers()
    with (
        _database(settings, answer_seconds=_ANSWER_ON_DATA_SECONDS) as database,
        hearing_signals() as stop,
        scheduling.claim(database) as task,
    ):
        if task is None:
            log.info("delivery_ignored", **asked_for, reason="no file and no job is without a worker")
            return
        work = _data_work(task.name)
        [name] = map(str, task.arguments)
        with (
            structlog.contextvars.bound_contextvars(**{work.kind: name}),
            attended(
                stop,
                stop_seconds=settings.stop_seconds,
                is_over=lambda: not _in_session(database, work.is_needed, name),
                give_back=lambda: _in_session(database, work.give_back, name),
            ),
        ):
            work.do(settings, database, name, stop.soon)
        _hand_over(settings, database)


class _DataWork(NamedTuple):
    """What is done to a job or a file by whoever has claimed it."""

    kind: str
    do: Callable[[StorageSettings, Database, str, threading.Event], None]
    is_needed: Callable[[Session, str], bool]
    give_back: Callable[[Session, str], None]


def _data_work(task: str) -> _DataWork:
    # Imported here and not above: the worker, of which this is a child, lives longer and needs none of it.
    if task == queue.PREPARE:
        from workers import preparing

        return _DataWork("job", preparing.prepare, preparations.is_under_way, preparations.give_back)
    from workers import validating

    return _DataWork("file", validating.validate, files.is_unjudged, files.give_back_validation)


def _in_session(database: Database, ask: Callable[[Session, str], Answer], name: str) -> Answer:
    with database.session_across_teams() as session:
        return ask(session, name)


def _hand_over(settings: StorageSettings, database: Database) -> None:
    """Have the queue told what waits by now."""
    queue.dispatch_soon(database, queue.connect(settings.required_redis_url))


@contextmanager
def _database(settings: StorageSettings, *, answer_seconds: float) -> Iterator[Database]:
    """A database of this child's own: connections don't survive a fork."""
    url = settings.required_database_url
    database = Database(url, pool_size=2, answer_seconds=answer_seconds, connect_seconds=_CONNECT_SECONDS)
    try:
        yield database
    finally:
        database.dispose()
