from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from workers.training.prefetch import one_ahead


def test_everything_comes_in_its_order():
    assert list(one_ahead(iter(range(20)), lambda number: number * 2)) == list(range(0, 40, 2))


def test_the_next_is_made_while_one_is_in_use():
    made = [threading.Event() for _ in range(3)]
    ahead = one_ahead(iter(range(3)), lambda number: made[number].set())
    next(ahead)
    assert made[1].wait(timeout=60)
    assert not made[2].is_set()
    ahead.close()


def test_errors_come_in_their_turn():
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    ahead = one_ahead(source(), str)
    assert next(ahead) == "1"
    with pytest.raises(ValueError, match="no more"):
        next(ahead)


def test_its_thread_ends_with_it():
    before = threading.active_count()
    ahead = one_ahead(iter(range(100)), str)
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
