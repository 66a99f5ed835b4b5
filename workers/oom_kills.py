"""Whether the kernel has killed a process for lack of memory, as far as its counters tell."""

from __future__ import annotations

import re
import time
from pathlib import Path

_LOOK_EVERY_SECONDS = 5.0
_CGROUPS = Path("sys/fs/cgroup")
_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def count(root: Path = Path("/")) -> int | None:
    """How many processes of this one's memory cgroup have been killed for lack of memory, or else of the machine.

    Two counts, before and after, tell whether one was meanwhile. None where the kernel doesn't say.
    """
    for path in [*_of_cgroup(root), root / "proc" / "vmstat"]:
        try:
            found = _COUNT.search(path.read_text())
        except OSError:
            continue
        if found is not None:
            return int(found[1])
    return None


def _of_cgroup(root: Path) -> list[Path]:
    """Where the counter may be, the likeliest first: in a container the own group is often shown as the root's."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        own = group.lstrip("/")
        if controllers == "":  # version 2
            found += [root / _CGROUPS / own / "memory.events", root / _CGROUPS / "memory.events"]
        elif "memory" in controllers.split(","):
            memory = root / _CGROUPS / "memory"
            found = [memory / own / "memory.oom_control", memory / "memory.oom_control", *found]
    return found


class RecentKills:
    """Whether the kernel has killed somebody here lately; `look` now and then, since others are killed too."""

    def __init__(self) -> None:
        self._before = self._latest = count()
        self._looked = time.monotonic()

    def look(self) -> None:
        """Forget what is older than what the last look saw, unless that was only a moment ago."""
        if time.monotonic() - self._looked > _LOOK_EVERY_SECONDS:
            self._before, self._latest = self._latest, count()
            self._looked = time.monotonic()

    def any(self) -> bool | None:
        """Whether there was one since the look before the last. None where that can't be known."""
        now = count()
        return None if self._before is None or now is None else now > self._before
