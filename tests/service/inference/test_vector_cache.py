"""Vectors that are remembered: the right ones, within their memory."""

import asyncio

import numpy as np

from service.inference.vector_cache import Known, VectorCache, key_of


def _known(number: float) -> Known:
    return Known(np.full(8, number, dtype=np.float32), tokens=3, truncated=False)


def test_what_was_kept_is_found_until_memory_is_short() -> None:
    cache = VectorCache(3 * (8 * 4 + 400))
    for name in (b"a", b"b", b"c"):
        cache.keep(name, _known(ord(name)))
    assert cache.find(b"a") is not None  # and is used last
    cache.keep(b"d", _known(4))
    assert [cache.find(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert len(cache) == 3


def test_a_kept_vector_does_not_hold_the_rest_of_its_request() -> None:
    cache = VectorCache(10_000)
    rows = np.zeros((1000, 8), dtype=np.float32)
    cache.keep(b"a", Known(rows[0], 1, False))
    found = cache.find(b"a")
    assert found is not None
    assert found.vector.base is None


def test_keys_differ_by_version_prompt_and_text() -> None:
    triples = [
        ("m", None, "ab"),
        ("m", "", "ab"),
        ("m", "a", "b"),
        ("ma", None, "b"),
        ("m", None, "ab "),
        ("n", None, "ab"),
    ]
    assert len({key_of(*triple) for triple in triples}) == len(triples)


def test_who_waits_for_a_promised_vector_gets_it_or_hears_that_nothing_came_of_it() -> None:
    async def run() -> None:
        cache = VectorCache(10_000)
        cache.promise(b"a")
        cache.promise(b"b")
        kept, given_up = cache.coming(b"a"), cache.coming(b"b")
        assert kept is not None
        assert given_up is not None
        cache.keep(b"a", _known(1))
        cache.give_up(b"a")  # changes nothing any more
        cache.give_up(b"b")
        await kept
        await given_up
        assert cache.find(b"a") is not None
        assert cache.find(b"b") is None
        assert cache.coming(b"a") is None

    asyncio.run(run())
