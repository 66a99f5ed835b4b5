"""Texts in, vectors out: what is remembered, shared and told."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from redis import Redis

from api_schemas.errors import LikenessError
from service.inference.engine import InferenceEngine
from service.inference.shared_vectors import SharedVectors
from service.model_names import NamedModel
from service.settings import ServiceSettings
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.model_folders import ModelFolders
from tests.installation import TINY

SECONDS = 60
MODEL = NamedModel(TINY, TINY, None, None, 32, 48)
TEXTS = ["a lamp", "a lamp with a shade", "something else"]


@pytest.fixture
def passes() -> list[int]:
    """How many texts each forward pass had."""
    return []


@pytest.fixture
def run(database: Database, base_models_dir: Path, tmp_path: Path, passes: list[int]) -> Callable[..., None]:
    def run(use: Callable[[InferenceEngine], Awaitable[None]], **settings: Any) -> None:
        async def within() -> None:
            given = ServiceSettings(base_models_dir=base_models_dir, mode="torch-fp32", **settings)
            engine = InferenceEngine(given, ModelFolders(database, ArtifactStore(tmp_path)))
            engine.batcher.observe = lambda texts, _tokens: passes.append(texts)
            try:
                async with asyncio.timeout(SECONDS):
                    await use(engine)
                    await engine.pool.settled()
            finally:
                await engine.close()

        asyncio.run(within())

    return run


def test_a_text_that_was_embedded_before_is_not_computed_again(run: Callable[..., None], passes: list[int]) -> None:
    async def use(engine: InferenceEngine) -> None:
        first = await engine.embed(MODEL, TEXTS, [None] * 3)
        again = await engine.embed(MODEL, [TEXTS[2], "a new one", TEXTS[0], TEXTS[0]], [None] * 4)
        assert (again.vectors[[0, 2, 3]] == first.vectors[[2, 0, 0]]).all()
        assert (engine.cache.hits, engine.cache.misses) == (3, 4)
        assert again.tokens == (await engine.embed(MODEL, ["a new one"], [None])).tokens + 2 * 4 + 4

    run(use)
    assert passes == [3, 1]


def test_without_memory_for_it_nothing_is_remembered(run: Callable[..., None], passes: list[int]) -> None:
    async def use(engine: InferenceEngine) -> None:
        for _ in range(2):
            await engine.embed(MODEL, [TEXTS[0]] * 2, [None] * 2)
        assert len(engine.cache) == 0

    run(use, vector_cache_bytes=0)
    assert passes == [2, 2]


def test_requests_for_one_text_at_once_compute_it_once(run: Callable[..., None], passes: list[int]) -> None:
    async def use(engine: InferenceEngine) -> None:
        answers = await asyncio.gather(*[engine.embed(MODEL, TEXTS[:1], [None]) for _ in range(20)])
        assert len({answer.vectors.tobytes() for answer in answers}) == 1

    run(use)
    assert passes == [1]


def test_who_wants_one_text_does_not_wait_for_a_request_of_very_many(
    run: Callable[..., None], passes: list[int]
) -> None:
    many = [f"text {number}" for number in range(300)]

    async def use(engine: InferenceEngine) -> None:
        await engine.embed(MODEL, TEXTS[2:], [None])  # the model is there from now on
        bulk = asyncio.create_task(engine.embed(MODEL, many, [None] * 300))
        await asyncio.sleep(0)
        one = await engine.embed(MODEL, many[-1:], [None])
        assert not bulk.done()
        assert np.abs((await bulk).vectors[-1] - one.vectors[0]).max() < 1e-6

    run(use, tokens_per_batch=64, forward_threads=1)


def test_who_waits_for_another_computes_it_when_that_one_leaves(run: Callable[..., None]) -> None:
    async def use(engine: InferenceEngine) -> None:
        await engine.embed(MODEL, TEXTS[2:], [None])  # the model is there from now on
        leaving = asyncio.create_task(engine.embed(MODEL, TEXTS[:1], [None]))
        waiting = asyncio.create_task(engine.embed(MODEL, TEXTS[:2], [None] * 2))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await waiting).vectors.shape == (2, 32)

    run(use)


def test_what_one_process_has_embedded_another_finds_in_valkey(
    run: Callable[..., None], passes: list[int], servers: tuple[str, str]
) -> None:
    found: list[bytes] = []

    async def use(engine: InferenceEngine) -> None:
        found.append((await engine.embed(MODEL, ["shared, by " + servers[1]], [None])).vectors.tobytes())

    for _ in range(2):
        run(use, shared_vectors_url=SecretStr(servers[1]))
    assert passes == [1]
    assert found[0] == found[1]
    with Redis.from_url(servers[1]) as redis:
        for key in redis.scan_iter("likeness:vector:*"):
            redis.set(key, redis.get(key)[:-4] + b"\0\0\xc0\x7f")  # NaN, as whoever can write there may leave
    run(use, shared_vectors_url=SecretStr(servers[1]))
    assert found[2] == found[0]
    assert passes == [1, 1]


def test_without_valkey_nothing_is_shared_and_all_is_answered(run: Callable[..., None], passes: list[int]) -> None:
    async def use(engine: InferenceEngine) -> None:
        engine.shared = SharedVectors("unix:///nowhere/valkey.sock", seconds=60)
        for number in range(3):
            assert (await engine.embed(MODEL, [f"number {number}"], [None])).vectors.shape == (1, 32)

    run(use)
    assert passes == [1, 1, 1]


def test_a_cut_text_is_told_of_also_when_it_is_remembered(run: Callable[..., None]) -> None:
    async def use(engine: InferenceEngine) -> None:
        for _ in range(2):
            embedded = await engine.embed(MODEL, ["short", "long " * 100], [None] * 2)
            assert embedded.truncated == [1]
            assert embedded.tokens == 3 + 48

    run(use)


def test_an_unknown_prompt_is_refused_and_nobody_is_left_waiting(run: Callable[..., None]) -> None:
    async def use(engine: InferenceEngine) -> None:
        for _ in range(2):
            with pytest.raises(LikenessError) as refusal:
                await engine.embed(MODEL, TEXTS, ["no such prompt"] * 3)
            assert refusal.value.code == "invalid_value"

    run(use)


def test_an_answer_says_where_its_time_went(run: Callable[..., None]) -> None:
    async def use(engine: InferenceEngine) -> None:
        timings = (await engine.embed(MODEL, TEXTS, [None] * 3)).timings
        assert timings.tokenize > 0
        assert timings.forward > 0

    run(use)


def test_vectors_have_length_one(run: Callable[..., None]) -> None:
    async def use(engine: InferenceEngine) -> None:
        vectors = (await engine.embed(MODEL, TEXTS, [None] * 3)).vectors
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    run(use)
