"""The RQ worker: takes tasks of one queue, runs each in a child, and runs nothing but what is on the list.

Run as `python -m workers.worker QUEUE`, which is what `likeness worker` does.
"""

import signal
import sys
from collections.abc import Callable
from typing import Any

import structlog
from rq import Worker
from rq.job import Job
from rq.serializers import JSONSerializer

from storage import queue
from storage.logs import configure_logging
from storage.processes import die_with_parent
from storage.settings import NoServersError, StorageSettings
from workers import tasks

log = structlog.get_logger("likeness.worker")

#: The callables a message may name; everything else in Valkey is data.
RUNNABLE: dict[str, Callable[..., None]] = {
    queue.TRAIN: tasks.train,
    queue.VALIDATE_FILE: tasks.validate_file,
}

# Members of a message that would make RQ import or call something of the message's choosing.
_ACTIVE_MEMBERS = (
    "success_callback_name", "failure_callback_name", "stopped_callback_name", "webhooks", "dependency_ids",
    "dependency_id", "repeats_left", "retries_left",
)  # fmt: skip


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

    def restore(self, raw_data: dict[Any, Any]) -> None:
        """Read a message, without callbacks, webhooks, dependencies and retries."""
        active = {name.encode() for name in _ACTIVE_MEMBERS}
        passive = {key: value for key, value in raw_data.items() if key not in active and key not in _ACTIVE_MEMBERS}
        super().restore(passive)


class LikenessWorker(Worker):
    """RQ's worker, with three differences: it forwards SIGTERM, its child dies with it, and it takes no commands."""

    job_class = ListedTask
    max_connection_wait_time = 5.0

    def handle_warm_shutdown_request(self) -> None:
        """Have the running task stop and give its job back, instead of waiting hours for its end."""
        if self.horse_pid:
            self.kill_horse(signal.SIGTERM)

    def setup_work_horse_signals(self) -> None:
        """In the child: die with the worker, however it dies; let the task decide about SIGTERM."""
        super().setup_work_horse_signals()  # type: ignore[no-untyped-call]  # RQ leaves it without annotations
        die_with_parent(signal.SIGKILL)

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
    worker = LikenessWorker(
        [queue_name],
        connection=queue.connect(settings.required_redis_url),
        serializer=JSONSerializer,
        log_job_description=False,
    )
    log.info("worker_started", worker=worker.name, queue=queue_name)
    worker.work(logging_level=settings.log_level)
    log.info("worker_stopped", worker=worker.name, queue=queue_name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
