"""Vectors that processes of an installation share in Valkey, if they are told to."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Mapping, Sequence

import numpy as np
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.inference.vector_cache import Known

log = structlog.get_logger(__name__)

_PREFIX = b"likeness:vector:"
#: Tokens, whether the text was cut, and how many numbers follow; little-endian, as those are.
_HEAD = struct.Struct("<I?I")
#: Computing takes milliseconds: whoever takes longer is not worth asking.
_ANSWER_SECONDS = 0.1
_PAUSE_SECONDS = 5.0
#: More take longer than that, and are worth a pass.
_MOST_KEYS = 64
_AWAY = (RedisError, OSError, TimeoutError)


class SharedVectors:
    """What other processes have embedded. Without Valkey it knows nothing. Belongs to one event loop."""

    def __init__(self, url: str | None, *, seconds: int) -> None:
        """url: None shares nothing. seconds: how long a vector is kept after it was made."""
        self._redis = Redis.from_url(url) if url else None
        self._seconds = seconds
        self._away_until = 0.0
        self.hits = 0

    async def find(self, keys: Sequence[bytes], dimension: int) -> dict[bytes, Known]:
        """What is known of these keys: vectors of so many numbers. Of very many keys nothing is asked."""
        if self._redis is None or not 0 < len(keys) <= _MOST_KEYS or time.monotonic() < self._away_until:
            return {}
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                values = await self._redis.mget([_PREFIX + key for key in keys])
        except _AWAY as error:
            self._pause(error)
            return {}
        read = {key: _read(value, dimension) for key, value in zip(keys, values, strict=True)}
        found = {key: known for key, known in read.items() if known is not None}
        self.hits += len(found)
        return found

    async def keep(self, vectors: Mapping[bytes, Known]) -> None:
        """Share these."""
        if self._redis is None or not 0 < len(vectors) <= _MOST_KEYS or time.monotonic() < self._away_until:
            return
        try:
            async with asyncio.timeout(_ANSWER_SECONDS), self._redis.pipeline(transaction=False) as pipeline:
                for key, known in vectors.items():
                    pipeline.set(_PREFIX + key, _written(known), ex=self._seconds)
                await pipeline.execute()
        except _AWAY as error:
            self._pause(error)

    async def close(self) -> None:
        """Close its connections."""
        if self._redis is not None:
            await self._redis.aclose()

    def _pause(self, error: Exception) -> None:
        self._away_until = time.monotonic() + _PAUSE_SECONDS
        log.warning("shared_vectors_away", reason=type(error).__name__, seconds=_PAUSE_SECONDS)


def _written(known: Known) -> bytes:
    return _HEAD.pack(known.tokens, known.truncated, known.vector.size) + known.vector.astype("<f4").tobytes()


def _read(value: bytes | str | None, dimension: int) -> Known | None:
    """None also for what isn't such a vector of length 1: anybody may have written it."""
    if not isinstance(value, bytes) or len(value) < _HEAD.size:
        return None
    tokens, truncated, size = _HEAD.unpack_from(value)
    if size != dimension or len(value) != _HEAD.size + 4 * size:
        return None
    vector = np.frombuffer(value, dtype="<f4", offset=_HEAD.size).astype(np.float32)
    return Known(vector, tokens, truncated) if abs(float(np.linalg.norm(vector)) - 1.0) < 1e-3 else None
