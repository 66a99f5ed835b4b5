"""The threads on which forward passes run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import structlog

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


class ForwardLostError(Exception):
    """The thread that ran a pass has died of it, or has not come back."""


class Lanes:
    """So many threads, each of which runs one pass at a time. One that dies or never comes back is replaced.

    Belongs to one event loop.
    """

    def __init__(self, count: int, *, name: str = "forward") -> None:
        self.count = count
        self._name = name
        self.replaced = 0
        self._passes: SimpleQueue[_Pass[Any] | None] = SimpleQueue()
        for _ in range(count):
            self._start()

    async def run(self, forward: Callable[[], Result], *, at_most: float | None = None) -> Result:
        """What `forward` returns or raises, from the first thread that is free.

        at_most: seconds after which its thread is given up and replaced; it can't be stopped.

        Raises ForwardLostError.
        """
        asked = _Pass(forward)
        self._passes.put(asked)
        try:
            async with asyncio.timeout(at_most):
                return await asked.result
        except TimeoutError as error:
            if asked.result.done() and not asked.result.cancelled():  # of the pass' own making
                raise
            asked.is_given_up = True
            self._replace("never came back")
            raise ForwardLostError(f"a forward pass took more than {at_most:.0f} s") from error

    def close(self) -> None:
        """Begin no other pass. Threads end with theirs; a process that ends waits for none of them."""
        for _ in range(self.count):
            self._passes.put(None)

    def _start(self) -> None:
        threading.Thread(target=self._serve, name=self._name, daemon=True).start()

    def _replace(self, why: str) -> None:
        self.replaced += 1
        log.error("forward_thread_replaced", reason=why)
        self._start()

    def _serve(self) -> None:
        while (asked := self._passes.get()) is not None:
            try:
                asked.run()
            except BaseException as error:  # noqa: BLE001 — whatever a thread dies of, another takes its place
                self._replace(f"died of {type(error).__name__}")
                return
            if asked.is_given_up:  # another has this one's place
                return
            del asked  # or it would hold its encoder and its vectors until the next one comes


class _Pass(Generic[Result]):
    """One pass, and who waits for it."""

    def __init__(self, forward: Callable[[], Result]) -> None:
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.is_given_up = False
        self._forward = forward
        self._loop = asyncio.get_running_loop()

    def run(self) -> None:
        """Run it, and tell. Raises what ends a thread."""
        try:
            result = self._forward()
        except Exception as error:  # noqa: BLE001 — it is for whoever waits
            self._tell(self._failed, error)
        except BaseException as error:  # of which the thread dies, once it is told
            self._tell(self._failed, ForwardLostError(f"{type(error).__name__} in a forward pass"))
            raise
        else:
            self._tell(self._succeeded, result)

    def _tell(self, how: Callable[[Any], None], what: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(how, what)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("forward_unheard")

    def _succeeded(self, result: Result) -> None:
        if not self.result.done():
            self.result.set_result(result)

    def _failed(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)
