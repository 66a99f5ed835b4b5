"""The queue in front of an encoder: texts of many requests share a forward pass, and no request can hurt another."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from api_schemas.errors import LikenessError

log = structlog.get_logger(__name__)

Tokens = npt.NDArray[np.int32] | npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]
#: Token ids of n texts, each (length,), or n vectors for an adapter → unit vectors (n, d).
Embed = Callable[[Sequence[Tokens]], Vectors]


@dataclass(eq=False)
class _Waiting:
    """One request's texts and the answer it waits for."""

    embed: Embed
    tokens: list[Tokens]
    costs: list[int]  # of each, in tokens
    answer: "asyncio.Future[Vectors]"
    vectors: list[Any] = field(default_factory=list)
    taken: int = 0  # texts handed to a forward pass
    missing: int = 0  # texts without a vector yet

    def __post_init__(self) -> None:
        self.vectors = [None] * len(self.tokens)
        self.missing = len(self.tokens)


#: Texts that wait while no forward pass ends are stuck after so long, or three times the longest pass so far.
_STUCK_SECONDS = 10.0

#: A text's place: its request and its number there.
_Place = tuple[_Waiting, int]


class Batcher:
    """Runs forward passes one after the other on an executor's thread; belongs to one event loop.

    A pass starts as soon as the last one ends: a lone request never waits for company, and under load what has
    arrived meanwhile goes together. Requests take turns, so that one with a single text isn't behind one with 2048.
    """

    def __init__(self, executor: Executor, *, tokens_per_batch: int, queued_tokens: int) -> None:
        self._executor = executor
        self._tokens_per_batch = tokens_per_batch
        self._most_queued = queued_tokens
        self._queued = 0
        self._requests: deque[_Waiting] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._moved = time.monotonic()
        self._longest_pass = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether texts wait or are being embedded."""
        return self._queued > 0

    @property
    def is_stuck(self) -> bool:
        """Whether texts wait and nothing has become of any for longer than a forward pass can take."""
        silence = time.monotonic() - self._moved
        return self.is_busy and silence > max(_STUCK_SECONDS, 3 * self._longest_pass)

    async def embed(self, embed: Embed, tokens: Sequence[Tokens], *, costs: list[int] | None = None) -> Vectors:
        """The vectors of a request's texts, (n, d), in order.

        costs: what each takes of the budget, in tokens; by default its length.

        Raises LikenessError `rate_limit_exceeded` when too much waits, `model_output_invalid` for NaN, and
        whatever `embed` raises for these texts alone.
        """
        costs = [len(each) for each in tokens] if costs is None else costs
        count = sum(costs)
        if self._queued and self._queued + count > self._most_queued:
            raise LikenessError(
                "rate_limit_exceeded",
                "Too many texts are waiting to be embedded; try again in a moment.",
                headers={"Retry-After": "1", "retry-after-ms": "500"},
            )
        if not self._queued:
            self._moved = time.monotonic()
        request = _Waiting(embed, list(tokens), costs, asyncio.get_running_loop().create_future())
        self._queued += count
        self._requests.append(request)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        try:
            return await request.answer
        finally:
            self._queued -= count

    async def _run(self) -> None:
        while batch := self._next_batch():
            await self._forward(batch)

    def _next_batch(self) -> list[_Place]:
        """Texts up to the budget, of one encoder, one from each request in turn."""
        batch: list[_Place] = []
        budget = self._tokens_per_batch
        others: list[_Waiting] = []
        while self._requests and budget > 0:
            request = self._requests.popleft()
            if request.answer.done():
                continue  # Its client left, or one of its texts failed: nobody reads the rest.
            if batch and request.embed != batch[0][0].embed:
                others.append(request)
                continue
            batch.append((request, request.taken))
            budget -= request.costs[request.taken]
            request.taken += 1
            if request.taken < len(request.tokens):
                self._requests.append(request)
        self._requests.extendleft(reversed(others))
        return batch

    async def _forward(self, batch: list[_Place]) -> None:
        tokens = [request.tokens[index] for request, index in batch]
        try:
            vectors = await self._timed_pass(batch[0][0].embed, tokens)
            if not np.isfinite(vectors).all():
                raise LikenessError("model_output_invalid", "The model produced NaN for one of these texts.")
        except Exception as error:  # noqa: BLE001 — whatever a forward raises must reach those who wait for it
            await self._isolate(batch, error)
        else:
            for (request, index), vector in zip(batch, vectors, strict=True):
                _deliver(request, index, vector)

    async def _timed_pass(self, embed: Embed, tokens: list[Tokens]) -> Vectors:
        began = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, embed, tokens)
        finally:
            self._moved = time.monotonic()
            self._longest_pass = max(self._longest_pass, self._moved - began)

    async def _isolate(self, batch: list[_Place], error: Exception) -> None:
        """A batch of several requests failed: run each request's texts alone, to fail only the one at fault."""
        requests = list(dict.fromkeys(request for request, _ in batch))
        if len(requests) == 1:
            log.warning("forward_failed", error=type(error).__name__, texts=len(batch))
            if not requests[0].answer.done():
                requests[0].answer.set_exception(error)
            return
        for request in requests:
            await self._forward([place for place in batch if place[0] is request])


def _deliver(request: _Waiting, index: int, vector: Vectors) -> None:
    request.vectors[index] = vector
    request.missing -= 1
    if request.missing == 0 and not request.answer.done():
        request.answer.set_result(np.stack(request.vectors))
