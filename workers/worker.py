"""The RQ worker: takes tasks of one queue, runs each in a child, and runs nothing but what is on the list.

Run as `python -m workers.worker QUEUE`, which is what `likeness worker` does.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import structlog
from redis import Redis, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Queue, Worker
from rq.exceptions import NoSuchJobError, StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now

from storage import queue
from storage.job_moves import Death
from storage.logs import configure_logging
from storage.processes import die_with_parent
from storage.settings import NoServersError, StorageSettings
from workers import stopping, tasks
from workers.deaths import death_of
from workers.oom_kills import RecentKills

log = structlog.get_logger("likeness.worker")

#: The callables a message may name; everything else in Valkey is data.
RUNNABLE: dict[str, Callable[..., None]] = {
    queue.TRAIN: tasks.train,
    queue.VALIDATE_FILE: tasks.validate_file,
    queue.PREPARE: tasks.prepare,
}

# The members of a message that are read. Others would make RQ import, call or fetch what the message chooses
# (callbacks, webhooks), or run it at another time (dependencies, retries, repeats, rate limits).
_READ_MEMBERS = frozenset(
    {"data", "origin", "status", "created_at", "enqueued_at", "started_at", "last_heartbeat", "worker_name"}
)
_BEGIN_AGAIN_SECONDS = 1.0
# Of this follow RQ's deadlines for a silent Valkey: 15 s less for an empty queue, 5 s less for an answer.
_WORKER_TTL_SECONDS = 25
_HELD_BACK = {signal.SIGTERM, signal.SIGINT, stopping.AT_ONCE}
#: How long a child may take to give its job back when it is to end at once.
_SECONDS_AT_ONCE = 3.0
_SECONDS_TO_SAY_GOODBYE = 1


class ForeignCallableError(Exception):
    """A message named a callable that isn't on the list. Nothing was imported."""


class ListedTask(Job):
    """A message whose callable is looked up in RUNNABLE, where RQ would import whatever it names."""

    @property
    def func(self) -> Callable[..., None]:
        """The callable to run. Raises ForeignCallableError."""
        function = RUNNABLE.get(self.func_name or "")
        if function is None:
            raise ForeignCallableError(f"{self.func_name!r} is not among {sorted(RUNNABLE)}")
        return function

    @classmethod
    def fetch(cls, id: str, connection: Redis | None = None, serializer: Any = None) -> Job:  # noqa: A002 — RQ's name
        """A message by its id. Raises NoSuchJobError also for one that can't be read, which RQ then passes over."""
        try:
            return super().fetch(id, connection=connection, serializer=serializer)
        except (NoSuchJobError, StopRequested, RedisConnectionError, RedisTimeoutError):
            raise
        except Exception as error:  # whatever strangers' bytes do to RQ's reader, the worker goes on
            log.warning("message_dropped", message=id, reason=type(error).__name__)
            raise NoSuchJobError(id) from error

    def restore(self, raw_data: dict[Any, Any]) -> None:
        """Read a message: which task, on what. How long it may take and what is kept of it isn't a message's to say."""
        super().restore({name: value for name, value in raw_data.items() if _text(name) in _READ_MEMBERS})
        self.timeout = -1
        self.result_ttl = self.failure_ttl = 0


def _text(name: bytes | str) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


class LikenessWorker(Worker):
    """RQ's worker, with these differences.

    It forwards SIGTERM to the running task, its child dies with it, it takes no commands from Valkey, and a
    Valkey that is away for a while costs it nothing. What a child that was killed left undone is told PostgreSQL.
    """

    job_class = ListedTask
    max_connection_wait_time = 5.0
    stop_asked = False
    #: How the child has ended.
    _child_status: int | None = None
    _kills: RecentKills

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """On the first SIGTERM or SIGINT: end, as soon as the running task has."""
        self.stop_asked = True
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]  # RQ leaves it without annotations

    def set_shutdown_requested_date(self) -> None:
        """Not told to Valkey, where nobody reads it: a signal handler should not depend on a server."""

    def handle_warm_shutdown_request(self) -> None:
        """Have the running task stop and give its job back, instead of waiting hours for its end."""
        if self.horse_pid:
            self.kill_horse(signal.SIGTERM)

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 — RQ's signature
        """On the second: have the running task give its job back this moment, and end. Raises SystemExit."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)  # this is as fast as it gets
        if self.horse_pid:
            self._end_task_at_once(self.horse_pid)
        raise SystemExit

    def _end_task_at_once(self, child: int) -> None:
        """Have a child end, if need be by force, and collect it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, stopping.AT_ONCE)
        deadline = time.monotonic() + _SECONDS_AT_ONCE
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    self.kill_horse(signal.SIGKILL)
                    os.waitpid(child, 0)
                    self._settle(None)
                    return
                time.sleep(0.02)

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """Fork, with signals held back until the child has handlers and a process group of its own."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        super().fork_work_horse(job, queue)  # the child doesn't come back
        with contextlib.suppress(ProcessLookupError):
            os.setpgid(self.horse_pid, self.horse_pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
        if self.stop_asked:  # before there was a child to forward it to
            self.handle_warm_shutdown_request()

    def setup_work_horse_signals(self) -> None:
        """In the child: die with the worker, however it dies; let the task decide about SIGTERM."""
        super().setup_work_horse_signals()  # type: ignore[no-untyped-call]
        die_with_parent(signal.SIGKILL)
        if os.getppid() != self.pid:  # it died before, and then no signal would ever come
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)

    def monitor_work_horse(self, job: Job, queue: Queue, execution: Execution) -> None:
        """Wait for the child's end. If it was killed, say in PostgreSQL what it can't say any more."""
        self._child_status, self._kills = None, RecentKills()
        try:
            super().monitor_work_horse(job, queue, execution)
        finally:
            self._settle_if_killed(self._child_status)

    def wait_for_horse(self) -> tuple[int | None, int | None, Any]:
        """Wait for the child's end, and keep how it has ended."""
        pid, self._child_status, usage = super().wait_for_horse()
        return pid, self._child_status, usage

    def _settle_if_killed(self, status: int | None) -> None:
        if status is None or not os.WIFSIGNALED(status):
            return
        number = os.WTERMSIG(status)
        if number in (stopping.SOON, stopping.AT_ONCE):  # it came before the child could hear it
            self._settle(None)
        else:
            self._settle(death_of("The training's watcher", number, after_step=None, out_of_memory=self._kills.any()))

    def _settle(self, death: Death | None) -> None:
        """Say what has become of the job that a child of this worker had; None: it was told to end."""
        try:
            tasks.settle_abandoned(self.name, death)
        except Exception:  # whatever it was, the worker goes on
            log.exception("job_not_settled")

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Tell Valkey that the task runs; the task goes on if Valkey is away, since only PostgreSQL counts."""
        self._kills.look()
        try:
            super().maintain_heartbeats(job, execution)
        except RedisError as error:
            log.warning("heartbeat_missed", reason=type(error).__name__)

    def run_maintenance_tasks(self) -> None:
        """RQ's tidying up in Valkey, which reads strangers' bytes and must not end the worker."""
        try:
            super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        except (StopRequested, RedisConnectionError, RedisTimeoutError):
            raise
        except Exception as error:  # noqa: BLE001 — as in ListedTask.fetch
            log.warning("tidying_failed", reason=type(error).__name__)
            self.last_cleaned_at = now()  # type: ignore[assignment]

    def teardown(self) -> None:
        """Say goodbye to Valkey, if it listens."""
        pool = self.connection.connection_pool
        pool.connection_kwargs["socket_timeout"] = _SECONDS_TO_SAY_GOODBYE
        pool.disconnect()
        super().teardown()  # type: ignore[no-untyped-call]

    def subscribe(self) -> None:
        """Take no commands from Valkey: a job is stopped through PostgreSQL. Also keeps fork() free of threads."""

    def unsubscribe(self) -> None:
        """Nothing to undo."""


def main(queue_name: str) -> int:
    """Work until SIGTERM or SIGINT. Returns the process' exit code."""
    settings = StorageSettings()
    configure_logging(settings.log_level)
    try:
        settings = settings.with_running_servers()
    except NoServersError as error:
        log.error("worker_not_started", reason=str(error))
        return 2
    log.info("worker_started", queue=queue_name)
    with contextlib.suppress(StopRequested, SystemExit):
        while not _work(settings, queue_name):
            pass
    log.info("worker_stopped", queue=queue_name)
    return 0


def _work(settings: StorageSettings, queue_name: str) -> bool:
    """Work until RQ's loop ends, which it does at any error. Returns whether it was asked to."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)  # until the worker listens itself
    worker = None
    try:
        worker = LikenessWorker(  # whose name is another each time
            [queue_name],
            connection=queue.connect(settings.required_redis_url),
            serializer=JSONSerializer,
            log_job_description=False,
            worker_ttl=_WORKER_TTL_SECONDS,
        )
        worker.work(logging_level=settings.log_level)
    except RedisError as error:  # when it registers, before its loop begins or after it ended
        log.warning("queue_away", reason=type(error).__name__)
    if worker is None or not worker.stop_asked:
        log.warning("worker_begins_again", queue=queue_name)
        time.sleep(_BEGIN_AGAIN_SECONDS)
    return worker is not None and worker.stop_asked


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise StopRequested


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
