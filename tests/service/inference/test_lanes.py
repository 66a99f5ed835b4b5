"""The threads of forward passes: what is done on them is heard, whatever becomes of them."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from service.inference.lanes import ForwardLostError, Lanes

SECONDS = 20


def _run(use: Callable[[Lanes], Awaitable[None]], *, count: int = 1) -> None:
    async def run() -> None:
        lanes = Lanes(count)
        try:
            async with asyncio.timeout(SECONDS):
                await use(lanes)
        finally:
            lanes.close()

    asyncio.run(run())


def test_what_a_pass_returns_or_raises_is_heard() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def use(lanes: Lanes) -> None:
        assert await lanes.run(lambda: 7) == 7
        with pytest.raises(ValueError, match="no"):
            await lanes.run(fail)
        assert await lanes.run(lambda: 8) == 8
        assert lanes.replaced == 0

    _run(use)


def test_a_thread_that_dies_is_replaced_and_counted() -> None:
    def die() -> None:
        raise GeneratorExit

    async def use(lanes: Lanes) -> None:
        with pytest.raises(ForwardLostError, match="GeneratorExit"):
            await lanes.run(die)
        assert await lanes.run(lambda: 7) == 7
        assert lanes.replaced == 1

    _run(use)


def test_a_thread_that_does_not_come_back_is_replaced_and_ends_when_it_does() -> None:
    blocked, freed = threading.Event(), threading.Event()
    names: list[threading.Thread] = []

    def block() -> None:
        names.append(threading.current_thread())
        blocked.set()
        freed.wait(SECONDS)

    async def use(lanes: Lanes) -> None:
        with pytest.raises(ForwardLostError):
            await lanes.run(block, at_most=0.01)
        assert blocked.is_set()
        assert await lanes.run(lambda: 7) == 7
        freed.set()
        await asyncio.to_thread(names[0].join, SECONDS)
        assert not names[0].is_alive()
        assert await lanes.run(lambda: 8) == 8
        assert lanes.replaced == 1

    _run(use)


def test_a_thread_that_waits_holds_nothing_of_its_last_pass() -> None:
    class Large: ...

    async def use(lanes: Lanes) -> None:
        large = Large()
        gone = weakref.ref(large)
        assert await lanes.run(partial(isinstance, large, Large))
        del large
        await lanes.run(int)  # by then the thread has let go of it
        gc.collect()
        assert gone() is None

    _run(use)


def test_a_time_limit_of_the_pass_itself_is_its_own_affair() -> None:
    def late() -> None:
        raise TimeoutError("its own")

    async def use(lanes: Lanes) -> None:
        with pytest.raises(TimeoutError, match="its own"):
            await lanes.run(late, at_most=SECONDS)
        assert lanes.replaced == 0

    _run(use)
