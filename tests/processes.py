"""Looking at processes and waiting for what can be observed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Answer = TypeVar("Answer")

_PATIENCE_SECONDS = 120.0


def until(look: Callable[[], Answer]) -> Answer:
    """Look again and again until the answer is true; then it is returned."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (answer := look()):
        assert time.monotonic() < deadline, f"it never came to be that {look}"
        time.sleep(0.02)
    return answer


def runs(pid: int) -> bool:
    """Whether a process exists and is no zombie, which in a container may wait long for somebody to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def await_end(*pids: int) -> None:
    """Wait until none of these processes runs."""
    until(lambda: not any(map(runs, pids)))


def descendants(pid: int) -> list[int]:
    """Children of a process, their children, and so on."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return children + [grandchild for child in children for grandchild in descendants(child)]


def pids_with(text: str) -> list[int]:
    """Running processes whose command line mentions `text`."""
    running = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and runs(int(entry.name))]
    return [pid for pid in running if text in _command(pid)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
