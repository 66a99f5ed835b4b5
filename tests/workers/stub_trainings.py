"""Programs in place of a training: for what happens around one, whatever it does itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from storage.processes import start_child, stop_child

WAITS = "import time; time.sleep(600)"
#: It hears that it is to stop, and does not.
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"
#: It leaves as a training does, which has kept its state.
LEAVES = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); {WAITS}"

# A worker whose trainings are one of these. The job's id is among their arguments, as it is for a training.
_WORKER = """
import sys
from workers import tasks, worker

tasks.training_command = lambda job_id, *_, **__: [sys.executable, "-c", sys.argv[1], job_id]
sys.exit(worker.main("gpu"))
"""


def start(program: str) -> Callable[..., subprocess.Popen[bytes]]:
    """What to put in the place of `tasks._start_training`."""

    def start_stub(job_id: str, *_: Any) -> subprocess.Popen[bytes]:
        return start_child([sys.executable, "-c", program, job_id])

    return start_stub


@contextmanager
def worker(program: str) -> Iterator[int]:
    """A real worker whose trainings are stubs. Yields its pid; stopped on the way out, its tasks killed."""
    process = start_child([sys.executable, "-c", _WORKER, program])
    try:
        yield process.pid
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        stop_child(process, sig=signal.SIGTERM, grace_seconds=30)
