"""/v1/embeddings: texts, or vectors for an adapter, in; unit vectors out."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, Request, Response

from api_schemas.embeddings import EmbeddingRequest, EmbeddingResponse, EmbeddingUsage, Given
from api_schemas.errors import LikenessError
from service.embedding_json import embedding_response_body
from service.inference.engine import Embedded, InferenceEngine
from service.inference_requests import embedded_for
from service.keys import CallerDep
from service.model_names import NamedModel
from service.state import StateDep
from service.strict_route import StrictRoute

#: So many are written where they are: handing them to a thread takes longer.
_FEW_NUMBERS = 10_000

router = APIRouter(prefix="/v1/embeddings", tags=["inference"], route_class=StrictRoute)


def engine_of(state: StateDep) -> InferenceEngine:
    """The engine; these routes exist only in a process that has one."""
    assert state.inference is not None  # noqa: S101 — service.app mounts the routes with the engine
    return state.inference


EngineDep = Annotated[InferenceEngine, Depends(engine_of)]


@router.post("", response_model=EmbeddingResponse)
async def create_embeddings(
    request: EmbeddingRequest, http: Request, caller: CallerDep, state: StateDep, engine: EngineDep
) -> Response:
    """Embed texts, or vectors with an adapter. What comes out has length 1: dot products are cosine similarities."""
    model = await state.catalogue.model(caller.team_id, request.model)
    check_dimensions(request.dimensions, model)
    prompts = [request.input_type] * len(request.input)
    embedding = embed(engine, model, request.input, _names(request.input), prompts)
    embedded = await embedded_for(http, state, embedding, len(request.input))
    vectors = shorten(embedded.vectors, request.dimensions)
    # Without pydantic, which would copy a request's million floats one by one.
    write = partial(
        embedding_response_body, vectors, request.encoding_format, model=request.model, version=model.name,
        usage=usage_of(embedded),
    )  # fmt: skip
    body = write() if vectors.size <= _FEW_NUMBERS else await asyncio.to_thread(write)
    return Response(body, media_type="application/json")


async def embed(
    engine: InferenceEngine,
    model: NamedModel,
    inputs: Sequence[Given],
    names: Sequence[str],
    prompts: Sequence[str | None],
) -> Embedded:
    """Embed what the model reads; `names` say where in the request each input is, `prompts` what it stands behind.

    Raises LikenessError `wrong_input` for what it doesn't read, `invalid_value` for a prompt before vectors, and what
    the engine raises.
    """
    if model.dimension is None:
        message = f"{model.name} is not trained: name a model that a job has made of it."
        raise LikenessError("invalid_value", message, param="model")
    if model.reads == "texts":
        texts = [_text(each, name, model) for each, name in zip(inputs, names, strict=True)]
        return await engine.embed(model, texts, prompts)
    if any(prompt is not None for prompt in prompts):
        message = f"`input_type` is for models that read texts, and {model.name} reads vectors. Leave it out."
        raise LikenessError("invalid_value", message, param="input_type")
    return await engine.adapt(
        model, [_vector(each, name, model) for each, name in zip(inputs, names, strict=True)], names
    )


def _text(given: Given, name: str, model: NamedModel) -> str:
    if isinstance(given, str):
        return given
    if all(number >= 0 and float(number).is_integer() for number in given):
        message = "holds token ids; encoders here have their own tokenizers, so send the texts themselves."
        raise LikenessError("token_input_unsupported", f"`{name}` {message}", param=name.partition(".")[0])
    raise LikenessError("wrong_input", f"`{name}` is a vector, and {model.name} reads texts. Send texts.", param=name)


def _vector(given: Given, name: str, model: NamedModel) -> list[float]:
    if not isinstance(given, str):
        return given
    message = f"`{name}` is a text, and {model.name} reads vectors of {model.dimension} numbers. Send those."
    raise LikenessError("wrong_input", message, param=name)


def _names(inputs: Sequence[Any]) -> list[str]:
    return [f"input.{index}" for index in range(len(inputs))] if len(inputs) > 1 else ["input"]


def shorten(vectors: npt.NDArray[np.float32], dimensions: int | None) -> npt.NDArray[np.float32]:
    """The first `dimensions` of each vector (n, d), normalised again; all of them for None.

    Raises LikenessError `model_output_invalid` for a vector that has nothing in those dimensions.
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    kept = vectors[:, :dimensions].astype(np.float64)
    norms = np.linalg.norm(kept, axis=1, keepdims=True)
    if not np.all(norms > 0):
        raise LikenessError(
            "model_output_invalid", f"A vector is zero in its first {dimensions} dimensions; ask for more."
        )
    shortened: npt.NDArray[np.float32] = (kept / norms).astype(np.float32)
    return shortened


def usage_of(embedded: Embedded) -> EmbeddingUsage:
    """What a request cost, and which of its texts were cut."""
    return EmbeddingUsage(prompt_tokens=embedded.tokens, total_tokens=embedded.tokens, truncated=embedded.truncated)


def check_dimensions(dimensions: int | None, model: NamedModel) -> None:
    """Raise LikenessError `out_of_range` for more dimensions than the model's vectors have."""
    if dimensions is not None and model.dimension is not None and dimensions > model.dimension:
        raise LikenessError(
            "out_of_range",
            f"'dimensions' must be at most {model.dimension}, the length of {model.name}'s vectors.",
            param="dimensions",
        )
