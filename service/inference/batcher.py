"""The queue in front of the encoders: texts of many requests share a forward pass, and no request can hurt another."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import structlog

from api_schemas.errors import LikenessError
from service.inference.lanes import ForwardLostError, Lanes
from service.inference.modes import Tokens, Vectors

log = structlog.get_logger(__name__)


#: Token ids of n texts, each (length,), or n vectors for an adapter → unit vectors (n, d).
Embed = Callable[[Sequence[Tokens]], Vectors]

#: Texts that wait while no forward pass ends are stuck after so long, or three times the longest pass so far.
_STUCK_SECONDS = 10.0
#: A pass that takes so long, or ten times the longest so far, is given up; and in any case one that takes longer still.
_LOST_SECONDS = 120.0
_SURELY_LOST_SECONDS = 600.0
#: About how long a pass may take where many wait: whoever comes next waits for it.
_PASS_SECONDS = 0.15
#: The least that a pass may hold, whatever it takes: passes over less are inefficient.
_LEAST_TOKENS = 256
#: How much of a rate the latest pass makes.
_NEWEST_SHARE = 0.2

#: A text's place: its request and its number there.
_Place = tuple["_Waiting", int]


@dataclass(eq=False)
class _Waiting:
    """One request's texts and the answer it waits for."""

    embed: Embed
    tokens: list[Tokens]
    costs: list[int]  # of each, in tokens
    answer: asyncio.Future[Answer]
    vectors: list[Any] = field(default_factory=list)
    taken: int = 0  # texts handed to a forward pass
    missing: int = 0  # texts without a vector yet
    came: float = field(default_factory=time.monotonic)
    began: float | None = None  # when its first pass did

    def __post_init__(self) -> None:
        self.vectors = [None] * len(self.tokens)
        self.missing = len(self.tokens)


@dataclass(frozen=True)
class Answer:
    """A request's unit vectors (n, d), in order, and where its time went, in seconds."""

    vectors: Vectors
    queued: float  # until its first pass began
    forward: float  # from then until its last pass ended


@dataclass
class Passes:
    """What has been computed so far."""

    count: int = 0
    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of all lanes together
    failed: int = 0
    halved: int = 0  # for lack of memory


class Batcher:
    """Runs forward passes on `lanes`; belongs to one event loop.

    A pass starts as soon as a lane is free: a lone request never waits for company, and under load what has arrived
    meanwhile goes together. Requests take turns, so that one with a single text isn't behind one with 2048.
    """

    def __init__(self, lanes: Lanes, *, tokens_per_batch: int, queued_tokens: int, queue_seconds: float) -> None:
        """queue_seconds: a request whose turn would come later than that is refused."""
        self._lanes = lanes
        self._tokens_per_batch = tokens_per_batch
        self._most_queued = queued_tokens
        self._queue_seconds = queue_seconds
        self._queued = 0
        self._requests: deque[_Waiting] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._rates: WeakKeyDictionary[Embed, float] = WeakKeyDictionary()  # tokens a second on one lane
        self._rate = 0.0  # of all encoders
        self._moved = time.monotonic()
        self.longest_pass = 0.0
        """Seconds, of those that came to an end."""
        self.passes = Passes()
        #: Called with the texts and tokens of each pass that came to its end.
        self.observe: Callable[[int, int], None] = lambda _texts, _tokens: None

    @property
    def queued_tokens(self) -> int:
        """Tokens of all requests that have no answer yet."""
        return self._queued

    @property
    def waiting_requests(self) -> int:
        """Requests with texts that no pass has begun with, and somebody who wants their vectors."""
        return sum(not request.answer.done() for request in self._requests)

    @property
    def is_busy(self) -> bool:
        """Whether texts wait or are being embedded."""
        return self._queued > 0

    @property
    def is_stuck(self) -> bool:
        """Whether texts wait and nothing has become of any for longer than a forward pass can take."""
        silence = time.monotonic() - self._moved
        return self.is_busy and silence > max(_STUCK_SECONDS, 3 * self.longest_pass)

    async def embed(self, embed: Embed, tokens: Sequence[Tokens], *, costs: list[int] | None = None) -> Answer:
        """The vectors of a request's texts.

        costs: what each takes of the budget, in tokens; by default its length.

        Raises LikenessError `rate_limit_exceeded` when too much waits, `model_output_invalid` for NaN, `forward_lost`,
        and whatever `embed` raises for these texts alone.
        """
        costs = [len(each) for each in tokens] if costs is None else costs
        count = sum(costs)
        self._refuse_beyond_limits(count)
        if not self._queued:
            self._moved = time.monotonic()
        request = _Waiting(embed, list(tokens), costs, asyncio.get_running_loop().create_future())
        self._queued += count
        self._requests.append(request)
        self._begin_passes()
        try:
            return await request.answer
        finally:
            self._queued -= count

    def _refuse_beyond_limits(self, count: int) -> None:
        wait = self._seconds_until_a_turn()
        has_room = not self._queued or self._queued + count <= self._most_queued
        if wait <= self._queue_seconds and has_room:
            return
        if not has_room:
            wait = self._queued / (self._rate * self._lanes.count) if self._rate else 1.0
        # When about half of what waits is done, there is room again.
        milliseconds = int(min(max(500.0 * wait, 100.0), 30_000.0))
        raise LikenessError(
            "rate_limit_exceeded",
            "Too many texts are waiting to be embedded; try again in a moment.",
            headers={"Retry-After": str(-(-milliseconds // 1000)), "retry-after-ms": str(milliseconds)},
        )

    def _seconds_until_a_turn(self) -> float:
        """For a request that came now: until one text of each that waits before it is embedded."""
        if not self._requests or not self._rate:
            return 0.0
        costs = sum(request.costs[request.taken] for request in self._requests if not request.answer.done())
        return costs / (self._rate * self._lanes.count)

    def _begin_passes(self) -> None:
        while len(self._running) < self._lanes.count and (batch := self._next_batch()):
            running = asyncio.create_task(self._forward(batch))
            self._running.add(running)
            running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        self._begin_passes()

    def _next_batch(self) -> list[_Place]:
        """Texts up to the budget, of one encoder, one from each request in turn."""
        batch: list[_Place] = []
        budget = 0
        others: list[_Waiting] = []
        while self._requests and (not batch or budget > 0):
            request = self._requests.popleft()
            if request.answer.done():
                continue  # Its client left, or one of its texts failed: nobody reads the rest.
            if not batch:
                budget = self._budget(request.embed)
            elif request.embed is not batch[0][0].embed:
                others.append(request)
                continue
            batch.append((request, request.taken))
            budget -= request.costs[request.taken]
            request.taken += 1
            if request.taken < len(request.tokens):
                self._requests.append(request)
        self._requests.extendleft(reversed(others))
        return batch

    def _budget(self, embed: Embed) -> int:
        """Tokens that a pass may hold: as many as the encoder takes in a moment, if that is known."""
        rate = self._rates.get(embed)
        if rate is None:
            return self._tokens_per_batch
        return min(self._tokens_per_batch, max(_LEAST_TOKENS, int(rate * _PASS_SECONDS)))

    async def _forward(self, batch: list[_Place]) -> None:
        began = time.monotonic()
        for request, _ in batch:
            request.began = request.began or began
        tokens = [request.tokens[index] for request, index in batch]
        try:
            vectors = await self._timed_pass(batch, tokens)
            if not np.isfinite(vectors).all():
                raise LikenessError("model_output_invalid", "The model produced NaN for one of these texts.")
            for (request, index), vector in zip(batch, vectors, strict=True):
                _deliver(request, index, vector)
        except ForwardLostError as error:
            self._fail(batch, LikenessError("forward_lost", f"The forward pass over these texts is lost: {error}."))
        except Exception as error:  # noqa: BLE001 — whatever a forward raises must reach those who wait for it
            await self._isolate(batch, error)

    async def _timed_pass(self, batch: list[_Place], tokens: list[Tokens]) -> Vectors:
        embed = batch[0][0].embed
        began = time.monotonic()
        at_most = min(max(_LOST_SECONDS, 10 * self.longest_pass), _SURELY_LOST_SECONDS)
        try:
            vectors = await self._lanes.run(lambda: embed(tokens), at_most=at_most)
        finally:
            self._moved = time.monotonic()
        self.longest_pass = max(self.longest_pass, self._moved - began)
        self._count(batch, self._moved - began)
        return vectors

    def _count(self, batch: list[_Place], seconds: float) -> None:
        tokens = sum(request.costs[index] for request, index in batch)
        self.passes.count += 1
        self.passes.texts += len(batch)
        self.passes.tokens += tokens
        self.passes.seconds += seconds
        self.observe(len(batch), tokens)
        if tokens < _LEAST_TOKENS:  # says little of how fast many are
            return
        embed, rate = batch[0][0].embed, tokens / max(seconds, 1e-6)
        self._rates[embed] = _smoothed(self._rates.get(embed), rate)
        self._rate = _smoothed(self._rate or None, rate)

    async def _isolate(self, batch: list[_Place], error: Exception) -> None:
        """A pass failed: fail only the request at fault, and try again by halves if memory was short."""
        self.passes.failed += 1
        if len(batch) > 1 and _is_lack_of_memory(error):
            self.passes.halved += 1
            log.warning("forward_halved", texts=len(batch))
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                await self._forward(half)
            return
        requests = list(dict.fromkeys(request for request, _ in batch))
        if len(requests) == 1:
            log.warning("forward_failed", error=type(error).__name__, texts=len(batch))
            self._fail(batch, error)
            return
        for request in requests:
            await self._forward([place for place in batch if place[0] is request])

    @staticmethod
    def _fail(batch: list[_Place], error: Exception) -> None:
        for request, _ in batch:
            if not request.answer.done():
                request.answer.set_exception(error)


def _deliver(request: _Waiting, index: int, vector: Vectors) -> None:
    request.missing -= request.vectors[index] is None  # a pass that failed in the middle is run again
    request.vectors[index] = vector
    if request.missing == 0 and not request.answer.done():
        began = request.began or request.came
        answer = Answer(np.stack(request.vectors), began - request.came, time.monotonic() - began)
        request.answer.set_result(answer)


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else (1 - _NEWEST_SHARE) * before + _NEWEST_SHARE * now


def _is_lack_of_memory(error: Exception) -> bool:
    # torch and onnxruntime have exceptions of their own for it on a GPU; on a CPU it is a RuntimeError with a text.
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "can't allocate memory", "failed to allocate", "bad allocation")
    )
