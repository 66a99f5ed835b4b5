"""The environment of a process that trains: what must be decided before it starts."""

from __future__ import annotations

import os

from workers.idle_cores import wait_policy

#: Read by glibc; other C libraries don't know them. What one step frees the next one needs again: by default glibc
#: gives large blocks back to the system in between, which then clears every page anew. With all-MiniLM-L6-v2 and 32
#: pairs of 120 tokens that is 200 000 pages and half a second of the CPU's time for a step of four.
_KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def training_environment() -> dict[str, str]:
    """This process' own, and what isn't in there: how threads wait (`wait_policy`), and that freed memory is kept.

    It looks at the cores for 0.3 s.
    """
    return {**_KEEP_FREED_MEMORY, **os.environ, **wait_policy()}
