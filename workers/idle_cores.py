"""Whether the cores are idle, which decides how the threads of a training wait for each other.

Between its operations a training's threads wait for microseconds. Threads that spin meanwhile go on at once; where
another program needs the same cores, they keep it, and with it each other, from working. With all-MiniLM-L6-v2 and
short pairs on two cores: 65 pairs/s spinning and 43 sleeping where nothing else ran, 22 and 36 beside one busy program.
OpenMP reads the choice once, when a process loads it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

_NAME = "OMP_WAIT_POLICY"
_STAT = Path("/proc/stat")
_LOOK_SECONDS = 0.3
#: A worker, a reconciler and an API that nobody asks take a few hundredths of a core.
_IDLE_SHARE = 0.9


def wait_policy() -> dict[str, str]:
    """What is to be added to the environment of a process that computes: nothing where its threads may spin.

    Nor where somebody has said already how they wait. Else it looks for 0.3 s.
    """
    if _NAME in os.environ or are_idle(_LOOK_SECONDS):
        return {}
    return {_NAME: "PASSIVE"}


def are_idle(seconds: float) -> bool:
    """Whether the cores that this process may use have next to nothing to do for so long; False where nobody tells."""
    if not _STAT.exists():
        return False
    before = _STAT.read_text()
    time.sleep(seconds)
    return idle_share(before, _STAT.read_text(), os.sched_getaffinity(0)) >= _IDLE_SHARE


def idle_share(before: str, after: str, cores: Collection[int]) -> float:
    """The share of their time that these cores were idle between two readings of /proc/stat; 0 if no time passed."""
    (idle_then, then), (idle_now, now) = (_ticks(stat, cores) for stat in (before, after))
    return (idle_now - idle_then) / (now - then) if now > then else 0.0


def _ticks(stat: str, cores: Collection[int]) -> tuple[int, int]:
    """Idle and all ticks of these cores since the machine started."""
    names = {f"cpu{core}" for core in cores}
    rows = [line.split() for line in stat.splitlines()]
    # user, nice, system, idle, iowait, irq, softirq, steal; what guests take is in user already
    ticks = [[int(number) for number in row[1:9]] for row in rows if row and row[0] in names]
    return sum(each[3] + each[4] for each in ticks), sum(map(sum, ticks))
