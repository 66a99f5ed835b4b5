"""Starts a training in several processes, with the variables that torchrun sets, and ends as the first of them does.

Run as `python -m workers.training.launcher PROCESSES COMMAND …` by `workers.tasks`. What it does that torchrun doesn't
(see docs/decisions/0005-a-launcher-of-our-own.md): its exit code is rank 0's, also of one that a signal killed; SIGTERM
is told to rank 0 only, which leads the others to the end of a step; no process outlives another or the launcher.

Nothing here imports torch.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from storage.processes import start_child

#: Number of the file descriptor on which rank 0 is to listen for the others, at MASTER_ADDR and MASTER_PORT. It is
#: open from the start, so that no other program can take the port meanwhile.
LISTENER = "LIKENESS_LISTENER"
_LOOK_EVERY_SECONDS = 0.05
#: Of a process that Python ended with a traceback.
_TRACEBACK = 1


def launch(command: Sequence[str], processes: int) -> int:
    """Run `command` in so many processes until rank 0 ends or another one fails, and end the rest.

    Returns an exit code, negative for a signal.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ranks = _started(command, processes)
    try:
        return _outcome(_first_ends(ranks, stop))
    finally:
        for process in ranks:
            process.kill()  # nothing is lost: only rank 0 writes, and what it writes is whole or not there
        for process in ranks:
            process.wait()


def _started(command: Sequence[str], processes: int) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        return [
            start_child(
                command,
                on_parent_death=signal.SIGKILL,
                new_group=False,
                env=_environment(rank, processes, listener),
                pass_fds=[listener.fileno()] if rank == 0 else [],
            )
            for rank in range(processes)
        ]


def _environment(rank: int, processes: int, listener: socket.socket) -> dict[str, str]:
    host, port = listener.getsockname()
    return {
        # Their threads share the cores. One process alone would take them all.
        "OMP_NUM_THREADS": str(max(1, _cores() // processes)),
        # Gloo would listen on the network, at the address that the host's name stands for.
        **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        LISTENER: str(listener.fileno()),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _first_ends(ranks: Sequence[subprocess.Popen[bytes]], stop: threading.Event) -> dict[int, int]:
    """Exit codes, by rank, of what has ended once rank 0 or a failed one is among it. SIGTERM is told to rank 0."""
    told = False
    while True:
        codes = {rank: code for rank, process in enumerate(ranks) if (code := process.poll()) is not None}
        if 0 in codes or any(codes.values()):
            return codes
        if stop.is_set() and not told:
            ranks[0].send_signal(signal.SIGTERM)
            told = True
        time.sleep(_LOOK_EVERY_SECONDS)


def _outcome(codes: dict[int, int]) -> int:
    """Rank 0's own, unless it says no more than that another process was gone: then how that one ended."""
    leader = codes.get(0, _TRACEBACK)
    if leader != _TRACEBACK:
        return leader
    return next((code for code in codes.values() if code < 0), _TRACEBACK)


def _end_as(code: int) -> int:
    """An exit code to leave with; doesn't come back for a signal, which ends this process as it ended that one."""
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(_end_as(launch(sys.argv[2:], int(sys.argv[1]))))
