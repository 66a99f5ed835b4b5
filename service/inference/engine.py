"""What the inference routes call: a model and texts in, unit vectors out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt
import structlog

from api_schemas.errors import LikenessError
from encoders.loading import AnyEncoder
from encoders.prompts import UnknownPromptError
from encoders.text import TextEncoder
from encoders.tokenizer import TokenizedText
from encoders.vectors import VectorAdapter
from service.inference.batcher import Batcher
from service.inference.forward import Forward
from service.inference.given_vectors import checked
from service.inference.lanes import Lanes
from service.inference.pool import EncoderPool
from service.inference.shared_vectors import SharedVectors
from service.inference.vector_cache import Known, VectorCache, key_of
from service.model_names import NamedModel, base_models
from service.settings import ServiceSettings
from storage.model_folders import ModelFolders

log = structlog.get_logger(__name__)

_PROBE_SECONDS = 30.0
#: Numbers of a vector that take as much of the batcher's budget as a token does: a million queued tokens are 256 MB of
#: vectors then. A pass over them is cheaper than over so many tokens.
_NUMBERS_A_TOKEN = 64
#: Texts of so many characters together are tokenized where they are: handing them to a thread takes longer.
_FEW_CHARACTERS = 2000
#: Requests for no more texts than that promise them to others who want the same.
_FEW_TEXTS = 32
_MOST_LANES = 4


@dataclass(frozen=True)
class Timings:
    """Where a request's time went, in seconds; all 0 where no pass was needed."""

    tokenize: float = 0.0
    queue: float = 0.0
    forward: float = 0.0


@dataclass(frozen=True)
class Embedded:
    """Unit vectors (n, d) float32, the tokens that were read, the places of texts that were cut, and how it went."""

    vectors: npt.NDArray[np.float32]
    tokens: int
    truncated: list[int]
    timings: Timings = field(default_factory=Timings)


class InferenceEngine:
    """Encoders and the batcher in front of them. Belongs to one event loop."""

    def __init__(self, settings: ServiceSettings, folders: ModelFolders) -> None:
        self._settings = settings
        self.pool = EncoderPool(
            folders,
            base_models_dir=settings.base_models_dir,
            memory_bytes=settings.model_memory_bytes,
            pinned=settings.pinned_models,
            mode=None if settings.mode == "auto" else settings.mode,
        )
        self.lanes = Lanes(_lanes(settings))
        self.batcher = Batcher(
            self.lanes,
            tokens_per_batch=settings.tokens_per_batch,
            queued_tokens=settings.queued_tokens,
            queue_seconds=settings.queue_seconds,
        )
        self.cache = VectorCache(settings.vector_cache_bytes)
        url = settings.shared_vectors_url
        self.shared = SharedVectors(url.get_secret_value() if url else None, seconds=settings.shared_vectors_seconds)

    async def embed(self, model: NamedModel, texts: Sequence[str], prompts: Sequence[str | None]) -> Embedded:
        """Embed texts with a model, each behind the prompt of the model that is named for it, if one is.

        Raises LikenessError as the pool and the batcher do, and `invalid_value` for a prompt that the model lacks.
        """
        async with self.pool.using(model) as forward:
            work = _Work(self, forward, texts, prompts)
            return await work.run()

    async def adapt(self, model: NamedModel, vectors: Sequence[Sequence[float]], names: Sequence[str]) -> Embedded:
        """Embed ready vectors with an adapter; `names` are theirs in the request.

        Raises LikenessError as the pool and the batcher do, and for vectors that the adapter can't take.
        """
        async with self.pool.using(model) as forward:
            encoder = cast(VectorAdapter, forward.encoder)
            # Off the event loop: a million numbers take a while.
            rows = await asyncio.to_thread(checked, vectors, encoder.dimension, names)
            cost = -(-encoder.dimension // _NUMBERS_A_TOKEN)
            answer = await self.batcher.embed(forward, list(rows), costs=[cost] * len(rows))
            timings = Timings(queue=answer.queued, forward=answer.forward)
            return Embedded(vectors=answer.vectors, tokens=0, truncated=[], timings=timings)

    async def encoder(self, model: NamedModel) -> AnyEncoder:
        """A model's encoder itself, for what isn't embedding. Raises LikenessError as the pool does."""
        return (await self.pool.get(model)).encoder

    async def probe(self) -> None:
        """Embed a word, if there is a model to do it; under load see to it that texts are being embedded.

        Raises TimeoutError when nothing moves, and LikenessError.
        """
        # Under load a word would wait behind all others, or be refused: a queue that moves proves as much.
        if self.batcher.is_busy:
            if self.batcher.is_stuck:
                raise TimeoutError("texts wait, and no forward pass ends")
            return
        async with asyncio.timeout(_PROBE_SECONDS):
            # Rather one in memory than a certain one, which would push another out.
            forward = self.pool.last_used() or await self._some_base_encoder()
            if forward is not None:
                await self.batcher.embed(forward, _something_to_embed(forward.encoder))

    async def _some_base_encoder(self) -> Forward | None:
        """One whose weights are here; None in an installation whose models are all made by its jobs."""
        models = base_models(self._settings.base_models_dir).values()
        installed = next((model for model in models if self.pool.has_weights(model)), None)
        return None if installed is None else await self.pool.get(installed)

    async def close(self) -> None:
        """Begin no other forward pass. One that runs is of no use to anybody any more."""
        self.pool.close()
        self.lanes.close()
        await self.shared.close()


class _Work:
    """One request for vectors of texts: those that are known, those that others are making, and the rest."""

    def __init__(
        self,
        engine: InferenceEngine,
        forward: Forward,
        texts: Sequence[str],
        prompts: Sequence[str | None],
    ) -> None:
        self._engine = engine
        self._cache = engine.cache
        self._forward = forward
        self._texts = texts
        self._prompts = prompts
        version = forward.version
        self._keys = [key_of(version, prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        self._known: dict[bytes, Known] = {}
        self._timings = Timings()

    async def run(self) -> Embedded:
        if not self._cache.is_on:
            places = list(range(len(self._texts)))
            return _assembled(await self._made(places), self._timings)
        self._recall()
        await self._make(self._missing())
        # What others promised and could not keep is made here after all.
        while missing := self._missing():
            for coming in [coming for key in self._keys if (coming := self._cache.coming(key))]:
                await asyncio.shield(coming)
            self._recall(counting=False)
            await self._make([place for place in missing if self._keys[place] not in self._known])
        return _assembled([self._known[key] for key in self._keys], self._timings)

    def _recall(self, *, counting: bool = True) -> None:
        for key in self._keys:
            if key not in self._known and (known := self._cache.find(key)):
                self._known[key] = known
        if counting:
            hits = sum(key in self._known for key in self._keys)
            self._cache.hits += hits
            self._cache.misses += len(self._keys) - hits

    def _missing(self) -> list[int]:
        """Places of texts without a vector, each text once."""
        first = {key: place for place, key in reversed(list(enumerate(self._keys)))}
        return sorted(place for key, place in first.items() if key not in self._known)

    async def _make(self, places: Sequence[int]) -> None:
        """Embed what nobody else is embedding."""
        places = [place for place in places if self._cache.coming(self._keys[place]) is None]
        if not places:
            return
        # Who wants one text had better not wait for a request of very many.
        promised = [self._keys[place] for place in places] if len(places) <= _FEW_TEXTS else []
        for key in promised:
            self._cache.promise(key)
        try:
            keys = [self._keys[place] for place in places]
            shared = await self._engine.shared.find(keys, self._forward.encoder.dimension)
            unknown = [place for place in places if self._keys[place] not in shared]
            made = {self._keys[place]: known for place, known in zip(unknown, await self._made(unknown), strict=True)}
            for key, known in {**shared, **made}.items():
                self._known[key] = known
                self._cache.keep(key, known)
            await self._engine.shared.keep(made)
        finally:
            for key in promised:
                self._cache.give_up(key)

    async def _made(self, places: Sequence[int]) -> list[Known]:
        if not places:
            return []
        began = time.monotonic()
        tokenized = await self._tokenized(places)
        took = time.monotonic() - began
        answer = await self._engine.batcher.embed(self._forward, [text.ids for text in tokenized])
        self._timings = Timings(took, answer.queued, answer.forward)
        return [
            Known(vector, len(text.ids), text.untruncated_length > len(text.ids))
            for vector, text in zip(answer.vectors, tokenized, strict=True)
        ]

    async def _tokenized(self, places: Sequence[int]) -> list[TokenizedText]:
        encoder = cast(TextEncoder, self._forward.encoder)
        texts, prompts = [self._texts[place] for place in places], [self._prompts[place] for place in places]
        try:
            before = {prompt: len(encoder.prompts.of(prompt)) for prompt in set(prompts)}
            characters = sum(len(text) + before[prompt] for text, prompt in zip(texts, prompts, strict=True))
            if characters <= _FEW_CHARACTERS:
                return _tokenize(encoder, texts, prompts)
            # The tokenizer releases the GIL, and long texts take a while.
            return await asyncio.to_thread(_tokenize, encoder, texts, prompts)
        except UnknownPromptError as error:
            raise LikenessError("invalid_value", f"'input_type': {error}", param="input_type") from error


def _lanes(settings: ServiceSettings) -> int:
    """How many passes run at once: two or more keep all cores busy while one is prepared, or waits for one core."""
    if settings.forward_threads != "auto":
        return settings.forward_threads
    return min(_MOST_LANES, len(os.sched_getaffinity(0)))


def _assembled(known: Sequence[Known], timings: Timings) -> Embedded:
    return Embedded(
        vectors=np.stack([each.vector for each in known]),
        tokens=sum(each.tokens for each in known),
        truncated=[place for place, each in enumerate(known) if each.truncated],
        timings=timings,
    )


def _tokenize(encoder: TextEncoder, texts: Sequence[str], prompts: Sequence[str | None]) -> list[TokenizedText]:
    """Each text behind its prompt. Raises UnknownPromptError."""
    found: dict[int, TokenizedText] = {}
    for prompt in set(prompts):
        places = [place for place, asked in enumerate(prompts) if asked == prompt]
        found |= zip(places, encoder.tokenize([texts[place] for place in places], prompt=prompt), strict=True)
    return [found[place] for place in range(len(texts))]


def _something_to_embed(encoder: AnyEncoder) -> list[npt.NDArray[np.int32]] | list[npt.NDArray[np.float32]]:
    if isinstance(encoder, VectorAdapter):
        return [np.ones(encoder.dimension, dtype=np.float32)]
    return [text.ids for text in encoder.tokenize(["ready"])]
