"""The next batch is drawn while the step before it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Drawn = TypeVar("Drawn")
Made = TypeVar("Made")


def one_ahead(source: Iterator[Drawn], make: Callable[[Drawn], Made]) -> Generator[Made]:
    """`make` of everything in `source`, in its order, each done on a thread while the one before it is in use.

    One thread, so that drawing is as deterministic as without it. Close the generator to end the thread. What
    `source` and `make` raise is raised here, in its turn.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        coming = thread.submit(_next, source, make)
        while made := coming.result():
            coming = thread.submit(_next, source, make)
            yield made[0]


def _next(source: Iterator[Drawn], make: Callable[[Drawn], Made]) -> tuple[Made] | None:
    """None at the end: a StopIteration can't leave a future."""
    try:
        return (make(next(source)),)
    except StopIteration:
        return None
