"""The queue in front of an encoder: who shares a forward pass with whom, and who is hurt by what."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from api_schemas.errors import LikenessError
from service.inference.batcher import Batcher, Tokens, Vectors
from service.inference.lanes import Lanes

POISON, NAN = -1, -2
SECONDS = 20


def _text(number: int, length: int = 1) -> Tokens:
    return np.full(length, number, dtype=np.int32)


class Passes:
    """Stands for an encoder: a text's vector is its first token. Keeps what each pass was given.

    While `closed`, a pass waits after it has begun, so that a test can arrange what comes next.
    """

    def __init__(self, *, most: int = 10**6) -> None:
        self._most = most  # texts that there is memory for
        self.seen: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self._open = threading.Event()
        self._open.set()

    def __call__(self, tokens: Sequence[Tokens]) -> Any:
        numbers = [int(text[0]) for text in tokens]
        self.seen.append(numbers)
        self.begun.release()
        assert self._open.wait(SECONDS)
        if len(numbers) > self._most:
            raise MemoryError
        if POISON in numbers:
            raise RuntimeError("a poisoned text")
        return np.array([[np.nan if number == NAN else number] for number in numbers], dtype=np.float32)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def wait_for_one(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=SECONDS)


def _run(use: Callable[[Batcher], Awaitable[None]], *, lanes: int = 1, **limits: Any) -> None:
    async def run() -> None:
        running = Lanes(lanes)
        try:
            async with asyncio.timeout(SECONDS):
                defaults = {"tokens_per_batch": 100, "queued_tokens": 10_000, "queue_seconds": 1000.0}
                await use(Batcher(running, **{**defaults, **limits}))
        finally:
            running.close()

    asyncio.run(run())


async def _vectors(batcher: Batcher, passes: "Passes", tokens: list[Tokens]) -> Vectors:
    return (await batcher.embed(passes, tokens)).vectors


async def _behind_a_pass(batcher: Batcher, passes: Passes) -> "asyncio.Task[Any]":
    """Have a pass under way that doesn't end before it is told to, so that what comes now has to wait."""
    passes.close()
    first = asyncio.create_task(_vectors(batcher, passes, [_text(0)]))
    await passes.wait_for_one()
    return first


async def _queued(batcher: Batcher, passes: Passes, *requests: list[Tokens]) -> "list[asyncio.Task[Any]]":
    """Requests that wait, in this order."""
    tasks = [asyncio.create_task(_vectors(batcher, passes, request)) for request in requests]
    await asyncio.sleep(0)  # each task runs until it waits for its answer
    return tasks


def test_a_lone_request_is_embedded_at_once_and_in_order() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        vectors = await _vectors(batcher, passes, [_text(3), _text(1), _text(2)])
        assert vectors.tolist() == [[3], [1], [2]]

    _run(use)
    assert passes.seen == [[3, 1, 2]]


def test_requests_that_wait_share_a_pass_and_each_gets_its_own() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        others = await _queued(batcher, passes, [_text(1), _text(2)], [_text(3)], [_text(4), _text(5)])
        passes.open()
        answers = [answer.tolist() for answer in await asyncio.gather(first, *others)]
        assert answers == [[[0]], [[1], [2]], [[3]], [[4], [5]]]

    _run(use)
    assert len(passes.seen) == 2
    assert sorted(passes.seen[1]) == [1, 2, 3, 4, 5]


def test_a_pass_takes_no_more_than_its_budget_and_one_text() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        await _vectors(batcher, passes, [_text(n, length=30) for n in range(10)])
        await _vectors(batcher, passes, [_text(10, length=500)])

    _run(use)
    assert [len(seen) for seen in passes.seen] == [4, 4, 2, 1]


def test_a_single_text_is_not_behind_2048_others() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        large, single = await _queued(batcher, passes, [_text(1)] * 2048, [_text(2)])
        passes.open()
        await single
        assert not large.done()
        await asyncio.gather(first, large)

    _run(use)
    assert 2 in passes.seen[1]
    assert len(passes.seen) > 20


def test_large_requests_take_turns() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        others = await _queued(batcher, passes, *[[_text(n)] * 200 for n in (1, 2, 3, 4)])
        passes.open()
        await asyncio.gather(first, *others)

    _run(use)
    for seen in passes.seen[1:]:
        assert [seen.count(n) for n in (1, 2, 3, 4)] == [25] * 4


def test_a_text_that_fails_hurts_its_own_request_alone() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        before, bad, after = await _queued(batcher, passes, [_text(1), _text(2)], [_text(3), _text(POISON)], [_text(4)])
        passes.open()
        with pytest.raises(RuntimeError, match="poisoned"):
            await bad
        assert [(await task).tolist() for task in (first, before, after)] == [[[0]], [[1], [2]], [[4]]]
        assert (await _vectors(batcher, passes, [_text(5)])).tolist() == [[5]]

    _run(use)


def test_what_follows_a_failed_text_of_the_same_request_is_not_computed() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        with pytest.raises(RuntimeError, match="poisoned"):
            await _vectors(batcher, passes, [_text(POISON), *[_text(7)] * 500])

    _run(use)
    assert len(passes.seen) == 1


def test_nan_is_an_error_of_the_request_that_got_it() -> None:
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

    _run(use)


def test_texts_whose_client_left_are_not_computed() -> None:
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

    _run(use)
    assert passes.seen == [[0], [2]]


def test_a_full_queue_says_when_to_come_back_and_takes_more_once_it_is_not() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        (waiting,) = await _queued(batcher, passes, [_text(1, length=900)])
        with pytest.raises(LikenessError) as refusal:
            await _vectors(batcher, passes, [_text(2, length=100)])
        assert (refusal.value.code, refusal.value.status) == ("rate_limit_exceeded", 429)
        assert float(refusal.value.headers["Retry-After"]) > 0
        assert float(refusal.value.headers["retry-after-ms"]) > 0
        waiting.cancel()  # whose place is free from now on
        await asyncio.sleep(0)
        (late,) = await _queued(batcher, passes, [_text(2, length=100)])
        passes.open()
        await asyncio.gather(first, late)

    _run(use, queued_tokens=1000)
    assert passes.seen == [[0], [2]]


def test_a_request_larger_than_the_whole_queue_is_taken_when_nothing_waits() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        assert (await _vectors(batcher, passes, [_text(1, length=50)])).tolist() == [[1]]

    _run(use, queued_tokens=10)


def test_encoders_do_not_mix_in_a_pass_and_none_is_forgotten() -> None:
    one, other = Passes(), Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, one)
        requests = [
            asyncio.create_task(_vectors(batcher, passes, [_text(n)] * 60))
            for n, passes in enumerate([one, other, one, other])
        ]
        await asyncio.sleep(0)
        one.open()
        await asyncio.gather(first, *requests)

    _run(use)
    assert {n for seen in one.seen for n in seen} == {0, 2}
    assert {n for seen in other.seen for n in seen} == {1, 3}


def test_a_queue_that_moves_is_busy_but_not_stuck() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        assert not batcher.is_busy
        first = await _behind_a_pass(batcher, passes)
        assert batcher.is_busy
        assert not batcher.is_stuck
        passes.open()
        await first
        assert not batcher.is_busy

    _run(use)


def test_a_queue_in_which_nothing_moves_for_long_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        monkeypatch.setattr("service.inference.batcher._STUCK_SECONDS", 0.0)
        assert batcher.is_stuck
        passes.open()
        await first
        assert not batcher.is_stuck

    _run(use)


def test_a_pass_holds_what_takes_a_moment_once_the_speed_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes()
    monkeypatch.setattr("service.inference.batcher._PASS_SECONDS", 0.0)
    monkeypatch.setattr("service.inference.batcher._LEAST_TOKENS", 7)

    async def use(batcher: Batcher) -> None:
        await _vectors(batcher, passes, [_text(0)] * 20)
        await _vectors(batcher, passes, [_text(1)] * 20)

    _run(use)
    assert [len(seen) for seen in passes.seen] == [20, 7, 7, 6]


def test_passes_run_beside_each_other_where_there_are_lanes() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        (second,) = await _queued(batcher, passes, [_text(1)])
        await passes.wait_for_one()
        assert not first.done()
        passes.open()
        await asyncio.gather(first, second)

    _run(use, lanes=2)


def test_a_pass_for_which_memory_is_short_is_tried_again_by_halves() -> None:
    passes = Passes(most=3)

    async def use(batcher: Batcher) -> None:
        assert (await _vectors(batcher, passes, [_text(n) for n in range(8)])).ravel().tolist() == [*range(8)]
        assert batcher.passes.halved == 3

    _run(use)
    assert [len(seen) for seen in passes.seen] == [8, 4, 2, 2, 4, 2, 2]


def test_one_text_for_which_memory_is_short_fails_alone() -> None:
    passes = Passes(most=0)

    async def use(batcher: Batcher) -> None:
        with pytest.raises(MemoryError):
            await _vectors(batcher, passes, [_text(1)])

    _run(use)


def test_a_request_whose_turn_would_come_too_late_is_refused_and_one_that_asks_for_many_texts_alike() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        await _vectors(batcher, passes, [_text(0, length=1000)])  # from now on the speed is known
        first = await _behind_a_pass(batcher, passes)
        waiting = await _queued(batcher, passes, [_text(1, length=50)])
        for late in ([_text(2)], [_text(2)] * 50):
            with pytest.raises(LikenessError) as refusal:
                await _vectors(batcher, passes, late)
            assert refusal.value.code == "rate_limit_exceeded"
            assert int(refusal.value.headers["retry-after-ms"]) >= 100
        passes.open()
        await asyncio.gather(first, *waiting)
        await _vectors(batcher, passes, [_text(3)])

    _run(use, queue_seconds=1e-9)
    assert 2 not in {number for seen in passes.seen for number in seen}


def test_a_pass_that_never_comes_back_is_given_up_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, passes = Passes(), Passes()
    monkeypatch.setattr("service.inference.batcher._LOST_SECONDS", 0.05)

    async def use(batcher: Batcher) -> None:
        stuck.close()
        with pytest.raises(LikenessError) as refusal:
            await _vectors(batcher, stuck, [_text(1)])
        assert (refusal.value.code, refusal.value.status) == ("forward_lost", 503)
        assert (await _vectors(batcher, passes, [_text(2)])).tolist() == [[2]]
        stuck.open()

    _run(use)


def test_an_answer_says_where_its_time_went() -> None:
    passes = Passes()

    async def use(batcher: Batcher) -> None:
        first = await _behind_a_pass(batcher, passes)
        waiting = asyncio.create_task(batcher.embed(passes, [_text(1)]))
        await asyncio.sleep(0)
        passes.open()
        await first
        answer = await waiting
        assert answer.queued > 0
        assert answer.forward > 0

    _run(use)
