"""Errors, delays and signals from the kernel's side of a system call, by strace, for a process that runs already."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ATTACH_SECONDS = 20.0


@dataclass
class Trace:
    """What strace has done so far."""

    log: Path
    process: subprocess.Popen[bytes]

    def injected(self) -> int:
        """How many calls it has tampered with."""
        return len(re.findall(r"\((?:INJECTED|DELAYED)\)", self.log.read_text(errors="replace")))


@contextmanager
def tampering(pid: int, calls: str, how: str) -> Iterator[Trace]:
    """Tamper with system calls of a process and its threads, such as `fsync,rename` by `error=EIO:when=3`.

    Each thread counts for itself. Raises RuntimeError when strace doesn't attach.
    """
    with tempfile.TemporaryDirectory(prefix="chaos-strace-") as folder:
        log = Path(folder) / "calls"
        command = [
            "strace", "-f", "-p", str(pid), "-o", str(log), "-e", f"trace={calls}",
            "-e", f"inject={calls}:{how}", "-e", "signal=none",
        ]  # fmt: skip
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        try:
            _await_attached(process, pid)
            yield Trace(log, process)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stderr is not None:
                process.stderr.close()


def _await_attached(process: subprocess.Popen[bytes], pid: int) -> None:
    deadline = time.monotonic() + _ATTACH_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _tracer(pid) == process.pid:
            return
        time.sleep(0.01)
    raise RuntimeError(f"strace did not attach to {pid}")


def _tracer(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(re.search(r"TracerPid:\s+(\d+)", status)[1])  # type: ignore[index]
