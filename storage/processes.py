"""Child processes that never outlive their parent."""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

_PR_SET_PDEATHSIG = 1
# Loaded here and not in the child: between fork and exec nothing may allocate or take a lock.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(sig: signal.Signals) -> None:
    """Have the kernel send `sig` to this process when its parent's thread ends, however it ends.

    Does nothing where the kernel has no such thing (outside Linux); there a clean stop still ends children.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(sig))


def _before_exec(parent: int, sig: signal.Signals) -> Callable[[], None]:
    def set_up() -> None:
        die_with_parent(sig)
        # The parent may have died between fork and prctl; then no signal would ever come.
        if os.getppid() != parent:
            os._exit(1)

    return set_up


def start_child(
    command: Sequence[str | Path],
    *,
    on_parent_death: signal.Signals = signal.SIGTERM,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: IO[Any] | int | None = None,
    user: str | None = None,
    new_group: bool = True,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that gets `on_parent_death` when the calling thread's process dies.

    `new_group` keeps a terminal's Ctrl-C from reaching it, so that the parent decides the order of stopping.
    """
    return subprocess.Popen(
        [str(part) for part in command],
        env=None if env is None else dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        user=user,
        process_group=0 if new_group else None,
        pass_fds=pass_fds,
        preexec_fn=_before_exec(os.getpid(), on_parent_death),
    )


def is_alive(pid: int) -> bool:
    """Whether there is a process with this id, whoever it belongs to."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code of a child, or None if it has not ended after so long.

    It sleeps meanwhile. `Popen.wait` with a timeout looks a hundred times a second, and takes a hundredth of a core.
    """
    if (code := process.poll()) is not None:
        return code
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux, or a sandbox that forbids it
        with suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
        return None
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(1000 * seconds)
    finally:
        os.close(descriptor)
    return process.poll()


def stop_child(process: subprocess.Popen[bytes], *, sig: signal.Signals, grace_seconds: float) -> int:
    """Ask a process to end with `sig`, and kill it after the grace time. Returns its exit code."""
    if process.poll() is None:
        process.send_signal(sig)
    return await_child(process, grace_seconds=grace_seconds)


def await_child(process: subprocess.Popen[bytes], *, grace_seconds: float) -> int:
    """Wait for a process that was asked to end, and kill it after the grace time. Returns its exit code."""
    try:
        return process.wait(timeout=grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
