"""The queue in front of an encoder: who shares a forward pass with whom, and who is hurt by what."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from api_schemas.errors import LikenessError
from service.inference.batcher import Batcher, Tokens

POISON, NAN = -1, -2
SECONDS = 20


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def _text(number: int, length: int = 1) -> Tokens:
    return np.full(length, number, dtype=np.int32)


class Passes:
    """Stands for an encoder: a text's vector is its first token. Keeps what each pass was given.

    While `closed`, a pass waits after it has begun, so that a test can arrange what comes next.
    """

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self._open = threading.Event()
        self._open.set()

    def __call__(self, tokens: Sequence[Tokens]) -> Any:
        numbers = [int(text[0]) for text in tokens]
        self.seen.append(numbers)
        self.begun.release()
        assert self._open.wait(SECONDS)
        if POISON in numbers:
            raise RuntimeError("a poisoned text")
        return np.array([[np.nan if number == NAN else number] for number in numbers], dtype=np.float32)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def wait_for_one(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=SECONDS)


def _run(executor: ThreadPoolExecutor, use: Callable[[Batcher], Awaitable[None]], **limits: int) -> None:
    async def run() -> None:
        async with asyncio.timeout(SECONDS):
            await use(Batcher(executor, **{"tokens_per_batch": 100, "queued_tokens": 10_000, **limits}))

    asyncio.run(run())


async def _behind_a_pass(batcher: Batcher, passes: Passes) -> "asyncio.Task[Any]":
    """Have a pass under way that doesn't end before it is told to, so that what comes now has to wait."""
    passes.close()
    first = asyncio.create_task(batcher.embed(passes, [_text(0)]))
    await passes.wait_for_one()
    return first


async def _queued(batcher: Batcher, passes: Passes, *requests: list[Tokens]) -> "list[asyncio.Task[Any]]":
    """Requests that wait, in this order."""
    tasks = [asyncio.create_task(batcher.embed(passes, request)) for request in requests]
    await asyncio.sleep(0)  # each task runs until it waits for its answer
    return tasks


def test_a_lone_request_is_embedded_at_once_and_in_order(executor: ThreadPoolExecutor) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        vectors = await batcher.embed(passes, [_text(3), _text(1), _text(2)])
        assert vectors.tolist() == [[3], [1], [2]]

    _run(executor, use)
    assert passes.seen == [[3, 1, 2]]


def test_requests_that_wait_share_a_pass_and_each_gets_its_own(executor: ThreadPoolExecutor) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        others = await _queued(batcher, passes, [_text(1), _text(2)], [_text(3)], [_text(4), _text(5)])
        passes.open()
        answers = [answer.tolist() for answer in await asyncio.gather(first, *others)]
        assert answers == [[[0]], [[1], [2]], [[3]], [[4], [5]]]

    _run(executor, use)
    assert len(passes.seen) == 2
    assert sorted(passes.seen[1]) == [1, 2, 3, 4, 5]


def test_a_pass_takes_no_more_than_its_budget_and_one_text(executor: ThreadPoolExecutor) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        await batcher.embed(passes, [_text(n, length=30) for n in range(10)])
        await batcher.embed(passes, [_text(10, length=500)])

    _run(executor, use)
    assert [len(seen) for seen in passes.seen] == [4, 4, 2, 1]


def test_a_single_text_is_not_behind_2048_others(executor: ThreadPoolExecutor) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        large, single = await _queued(batcher, passes, [_text(1)] * 2048, [_text(2)])
        passes.open()
        await single
        assert not large.done()
        await asyncio.gather(first, large)

    _run(executor, use)
    assert 2 in passes.seen[1]
    assert len(passes.seen) > 20


def test_large_requests_take_turns(executor: ThreadPoolExecutor) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        others = await _queued(batcher, passes, *[[_text(n)] * 200 for n in (1, 2, 3, 4)])
        passes.open()
        await asyncio.gather(first, *others)

    _run(executor, use)
    for seen in passes.seen[1:]:
        assert [seen.count(n) for n in (1, 2, 3, 4)] == [25] * 4


def test_a_text_that_fails_hurts_its_own_request_alone(executor: ThreadPoolExecutor) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        before, bad, after = await _queued(batcher, passes, [_text(1), _text(2)], [_text(3), _text(POISON)], [_text(4)])
        passes.open()
        with pytest.raises(RuntimeError, match="poisoned"):
            await bad
        assert [(await task).tolist() for task in (first, before, after)] == [[[0]], [[1], [2]], [[4]]]
        assert (await batcher.embed(passes, [_text(5)])).tolist() == [[5]]

    _run(executor, use)


def test_what_follows_a_failed_text_of_the_same_request_is_not_computed(executor: ThreadPoolExecutor) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        with pytest.raises(RuntimeError, match="poisoned"):
            await batcher.embed(passes, [_text(POISON), *[_text(7)] * 500])

    _run(executor, use)
    assert len(passes.seen) == 1


def test_nan_is_an_error_of_the_request_that_got_it(executor: ThreadPoolExecutor) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        good, bad = await _queued(batcher, passes, [_text(1)], [_text(NAN)])
        passes.open()
        with pytest.raises(LikenessError) as refusal:
            await bad
        assert refusal.value.code == "model_output_invalid"
        assert (await good).tolist() == [[1]]
        await first

    _run(executor, use)


def test_texts_whose_client_left_are_not_computed(executor: ThreadPoolExecutor) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        left, stayed = await _queued(batcher, passes, [_text(1)] * 50, [_text(2)])
        left.cancel()
        passes.open()
        await asyncio.gather(first, stayed)
        with pytest.raises(asyncio.CancelledError):
            await left
        assert not batcher.is_busy

    _run(executor, use)
    assert passes.seen == [[0], [2]]


def test_a_full_queue_says_when_to_come_back_and_takes_more_once_it_is_not(executor: ThreadPoolExecutor) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        (waiting,) = await _queued(batcher, passes, [_text(1, length=900)])
        with pytest.raises(LikenessError) as refusal:
            await batcher.embed(passes, [_text(2, length=100)])
        assert (refusal.value.code, refusal.value.status) == ("rate_limit_exceeded", 429)
        assert float(refusal.value.headers["Retry-After"]) > 0
        assert float(refusal.value.headers["retry-after-ms"]) > 0
        waiting.cancel()  # whose place is free from now on
        await asyncio.sleep(0)
        (late,) = await _queued(batcher, passes, [_text(2, length=100)])
        passes.open()
        await asyncio.gather(first, late)

    _run(executor, use, queued_tokens=1000)
    assert passes.seen == [[0], [2]]


def test_a_request_larger_than_the_whole_queue_is_taken_when_nothing_waits(executor: ThreadPoolExecutor) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        assert (await batcher.embed(passes, [_text(1, length=50)])).tolist() == [[1]]

    _run(executor, use, queued_tokens=10)


def test_encoders_do_not_mix_in_a_pass_and_none_is_forgotten(executor: ThreadPoolExecutor) -> None:
    one, other = Passes(), Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, one)
        requests = [
            asyncio.create_task(batcher.embed(passes, [_text(n)] * 60))
            for n, passes in enumerate([one, other, one, other])
        ]
        await asyncio.sleep(0)
        one.open()
        await asyncio.gather(first, *requests)

    _run(executor, use)
    assert {n for seen in one.seen for n in seen} == {0, 2}
    assert {n for seen in other.seen for n in seen} == {1, 3}


def test_a_queue_that_moves_is_busy_but_not_stuck(executor: ThreadPoolExecutor) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        assert not batcher.is_busy
        first = await _behind_a_pass(batcher, passes)
        assert batcher.is_busy
        assert not batcher.is_stuck
        passes.open()
        await first
        assert not batcher.is_busy

    _run(executor, use)


def test_a_queue_in_which_nothing_moves_for_long_is_stuck(
    executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        monkeypatch.setattr("service.inference.batcher._STUCK_SECONDS", 0.0)
        assert batcher.is_stuck
        passes.open()
        await first
        assert not batcher.is_stuck

    _run(executor, use)
