"""The process table, as far as it is a fleet's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: In the environment of every process of a fleet, with the fleet's name.
MARK = "CHAOS_FLEET"


@dataclass(frozen=True)
class Process:
    """A process that runs now, or is stopped; zombies are none."""

    pid: int
    parent: int
    command: str
    started: int  # clock ticks since boot: with the pid, who it is
    state: str

    @property
    def trains(self) -> tuple[str, int] | None:
        """The job and the attempt that this process trains."""
        words = self.command.split()
        if "workers.training.run" not in words:
            return None
        at = words.index("workers.training.run")
        return words[at + 1], int(words[at + 2])


class ProcessTable:
    """Finds a fleet's processes by the mark in their environment, which is read once for each command."""

    def __init__(self, fleet: str) -> None:
        self._mark = f"{MARK}={fleet}\0".encode()
        self._known: dict[tuple[int, int, str], bool] = {}

    def look(self) -> dict[int, Process]:
        """Every process of the fleet by its pid."""
        found = (self._read(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return {process.pid: process for process in found if process is not None and self._is_ours(process)}

    def trainer_of(self, job_id: str, attempt: int) -> Process | None:
        """The process that trains an attempt of a job now."""
        return next((process for process in self.look().values() if process.trains == (job_id, attempt)), None)

    def runs(self, pid: int) -> bool:
        """Whether there is such a process, and it is no zombie."""
        return self._read(pid) is not None

    @staticmethod
    def _read(pid: int) -> Process | None:
        try:
            before, _, after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = after.split()
        if fields[0] in "ZX":
            return None
        return Process(pid, int(fields[1]), command or before.partition("(")[2], int(fields[19]), fields[0])

    def _is_ours(self, process: Process) -> bool:
        # Between fork and exec a process still has its parent's command and environment.
        key = (process.pid, process.started, process.command)
        if key not in self._known:
            try:
                self._known[key] = self._mark in Path(f"/proc/{process.pid}/environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                return False
        return self._known[key]


def family(table: dict[int, Process], pid: int) -> list[Process]:
    """A process and its descendants, parents first."""
    if pid not in table:
        return []
    children = [process.pid for process in table.values() if process.parent == pid]
    return [table[pid], *(member for child in children for member in family(table, child))]


def ancestors(table: dict[int, Process], pid: int) -> list[int]:
    """The pids above a process that are in the table, nearest first."""
    found: list[int] = []
    while pid in table and table[pid].parent in table:
        pid = table[pid].parent
        found.append(pid)
    return found
