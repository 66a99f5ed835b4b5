"""What the inference routes call: a model and texts in, unit vectors out."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from service.inference.given_vectors import checked
from service.inference.pool import EncoderPool
from service.model_names import NamedModel, base_models
from service.settings import ServiceSettings
from storage.model_folders import ModelFolders

log = structlog.get_logger(__name__)

_PROBE_SECONDS = 30.0
#: Numbers of a vector that take as much of the batcher's budget as a token does: a million queued tokens are 256 MB of
#: vectors then. A pass over them is cheaper than over so many tokens.
_NUMBERS_A_TOKEN = 64


@dataclass(frozen=True)
class Embedded:
    """Unit vectors (n, d) float32, the tokens that were read, and the places of texts that were cut."""

    vectors: npt.NDArray[np.float32]
    tokens: int
    truncated: list[int]


class InferenceEngine:
    """Encoders and the batcher in front of them. Belongs to one event loop."""

    def __init__(self, settings: ServiceSettings, folders: ModelFolders) -> None:
        self._settings = settings
        self._pool = EncoderPool(folders, base_models_dir=settings.base_models_dir, size=settings.loaded_models)
        # One thread: torch spreads a forward pass over the cores itself.
        self._forward = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._batcher = Batcher(
            self._forward,
            tokens_per_batch=settings.tokens_per_batch,
            queued_tokens=settings.queued_tokens,
        )

    async def embed(self, model: NamedModel, texts: Sequence[str], prompts: Sequence[str | None]) -> Embedded:
        """Embed texts with a model, each behind the prompt of the model that is named for it, if one is.

        Raises LikenessError as the pool and the batcher do, and `invalid_value` for a prompt that the model lacks.
        """
        encoder = cast(TextEncoder, await self._pool.get(model))
        # Off the event loop: the tokenizer releases the GIL, and long texts take a while.
        try:
            tokenized = await asyncio.to_thread(_tokenized, encoder, texts, prompts)
        except UnknownPromptError as error:
            raise LikenessError("invalid_value", f"'input_type': {error}", param="input_type") from error
        vectors = await self._batcher.embed(encoder.embed, [text.ids for text in tokenized])
        return Embedded(
            vectors=vectors,
            tokens=sum(len(text.ids) for text in tokenized),
            truncated=[index for index, text in enumerate(tokenized) if text.untruncated_length > len(text.ids)],
        )

    async def adapt(self, model: NamedModel, vectors: Sequence[Sequence[float]], names: Sequence[str]) -> Embedded:
        """Embed ready vectors with an adapter; `names` are theirs in the request.

        Raises LikenessError as the pool and the batcher do, and for vectors that the adapter can't take.
        """
        encoder = cast(VectorAdapter, await self._pool.get(model))
        # Off the event loop: a million numbers take a while.
        rows = await asyncio.to_thread(checked, vectors, encoder.dimension, names)
        cost = -(-encoder.dimension // _NUMBERS_A_TOKEN)
        embedded = await self._batcher.embed(encoder.embed, list(rows), costs=[cost] * len(rows))
        return Embedded(vectors=embedded, tokens=0, truncated=[])

    async def encoder(self, model: NamedModel) -> AnyEncoder:
        """A model's encoder itself, for what isn't embedding. Raises LikenessError as the pool does."""
        return await self._pool.get(model)

    async def probe(self) -> None:
        """Embed a word, if there is a model to do it; under load see to it that texts are being embedded.

        Raises TimeoutError when nothing moves, and LikenessError.
        """
        # Under load a word would wait behind all others, or be refused: a queue that moves proves as much.
        if self._batcher.is_busy:
            if self._batcher.is_stuck:
                raise TimeoutError("texts wait, and no forward pass ends")
            return
        async with asyncio.timeout(_PROBE_SECONDS):
            # Rather one in memory than a certain one, which would push another out.
            encoder = self._pool.last_used() or await self._some_base_encoder()
            if encoder is not None:
                await self._batcher.embed(encoder.embed, _something_to_embed(encoder))

    async def _some_base_encoder(self) -> AnyEncoder | None:
        """One whose weights are here; None in an installation whose models are all made by its jobs."""
        models = base_models(self._settings.base_models_dir).values()
        installed = next((model for model in models if self._pool.has_weights(model)), None)
        return None if installed is None else await self._pool.get(installed)

    def close(self) -> None:
        """Let the running forward pass end, and no other begin."""
        self._forward.shutdown(wait=True, cancel_futures=True)


def _tokenized(encoder: TextEncoder, texts: Sequence[str], prompts: Sequence[str | None]) -> list[TokenizedText]:
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
