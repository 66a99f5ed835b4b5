"""Vectors of texts that were embedded before: exact text and model version in, the same vector out."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: What an entry takes beside its vector: its key, its place in the order, objects.
_ENTRY_BYTES = 400


@dataclass(frozen=True)
class Known:
    """What came of a text: its unit vector (d,) float32, how many tokens were read, and whether it was cut."""

    vector: npt.NDArray[np.float32]
    tokens: int
    truncated: bool


def key_of(version: str, prompt: str | None, text: str) -> bytes:
    """What a vector is known by: the model's version, the prompt that the text stands behind, and the text."""
    parts = (version, "" if prompt is None else f"p{prompt}", text)
    # Lengths in front of the parts: no two different triples are written alike.
    written = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(written.encode("utf-8", "surrogatepass"), digest_size=24).digest()


class VectorCache:
    """Vectors in so many bytes of memory, the least recently used forgotten first. Belongs to one event loop.

    Whoever asks for a text that is just being embedded for another waits for that vector.
    """

    def __init__(self, most_bytes: int) -> None:
        """most_bytes: 0 keeps nothing, and lets nobody wait for another."""
        self._most_bytes = most_bytes
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._coming: dict[bytes, asyncio.Future[None]] = {}
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    @property
    def is_on(self) -> bool:
        """Whether it keeps anything."""
        return self._most_bytes > 0

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: bytes) -> Known | None:
        """What is known, if anything is."""
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def coming(self, key: bytes) -> asyncio.Future[None] | None:
        """Done when another request has the vector, or has given up."""
        return self._coming.get(key)

    def promise(self, key: bytes) -> None:
        """Say that the vector is being made; `keep` or `give_up` must follow."""
        self._coming[key] = asyncio.get_running_loop().create_future()

    def keep(self, key: bytes, known: Known) -> None:
        """Keep a vector that was promised, and give it to those who wait."""
        self._tell(key)
        if key in self._known:
            return
        # A copy: a row of a request's vectors would keep all of them in memory.
        self._known[key] = Known(known.vector.copy(), known.tokens, known.truncated)
        self.bytes += known.vector.nbytes + _ENTRY_BYTES
        while self.bytes > self._most_bytes:
            _, oldest = self._known.popitem(last=False)
            self.bytes -= oldest.vector.nbytes + _ENTRY_BYTES

    def give_up(self, key: bytes) -> None:
        """Let those who wait for a promised vector make it themselves; nothing if it was kept."""
        self._tell(key)

    def _tell(self, key: bytes) -> None:
        coming = self._coming.pop(key, None)
        if coming is not None and not coming.done():
            coming.set_result(None)
