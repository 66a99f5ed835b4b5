"""/v1/similarity: how alike texts are under a model, or vectors under an adapter or as they are."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response

from api_schemas.embeddings import EmbeddingUsage, Given
from api_schemas.similarity import SimilarityRequest, SimilarityResponse, SimilarityUsage
from service.given_comparison import as_float32, comparable
from service.inference_requests import embedded_for
from service.keys import CallerDep
from service.model_names import NamedModel
from service.routes.embeddings import EngineDep, embed, usage_of
from service.similarity_json import NDJSON_RESPONSES, row_items, score_items, similarity_response
from service.state import StateDep
from service.strict_route import StrictRoute

router = APIRouter(prefix="/v1/similarity", tags=["inference"], route_class=StrictRoute)


@router.post("", response_model=SimilarityResponse, responses=NDJSON_RESPONSES)
async def compare(
    request: SimilarityRequest, http: Request, caller: CallerDep, state: StateDep, engine: EngineDep
) -> Response:
    """Scores of pairs, of a query and documents, the nearest first, or of each of `a` with each of `b`."""
    named = _named_inputs(request)
    if request.model is None:
        vectors: npt.NDArray[Any] = await asyncio.to_thread(comparable, named, request.metric)
        version = None
        usage = EmbeddingUsage(prompt_tokens=0, total_tokens=0)
    else:
        model = await state.catalogue.model(caller.team_id, request.model)
        embedding = embed(engine, model, list(named.values()), list(named), _prompts(request, model, list(named)))
        embedded = await embedded_for(http, state, embedding, len(named))
        vectors, version, usage = embedded.vectors, model.name, usage_of(embedded)
    items = await asyncio.to_thread(_items, request, vectors)
    # A thread once more, as items are written when they are asked for.
    told = SimilarityUsage(model=request.model, model_version=version, usage=usage)
    return await asyncio.to_thread(similarity_response, http, items, told)


def _named_inputs(request: SimilarityRequest) -> dict[str, Given]:
    """All inputs by their names in the request: pair by pair, or the query and the documents, or `a` and `b`."""
    named: dict[str, Given] = {}
    for row, pair in enumerate(request.pairs or []):
        named |= {f"pairs.{row}.{side}": given for side, given in enumerate(pair)}
    if request.query is not None:
        named["query"] = request.query
    lists: dict[str, Sequence[Given] | None] = {"documents": request.documents, "a": request.a, "b": request.b}
    for field, inputs in lists.items():
        named |= {f"{field}.{row}": given for row, given in enumerate(inputs or [])}
    return named


def _prompts(request: SimilarityRequest, model: NamedModel, names: Sequence[str]) -> list[str | None]:
    """What each input stands behind: a ranking itself says which is the query, and which are documents."""
    if request.query is None:
        return [request.input_type] * len(names)
    if model.reads == "vectors":
        return [None] * len(names)
    return ["query" if name == "query" else "document" for name in names]


def _items(request: SimilarityRequest, vectors: npt.NDArray[Any]) -> Iterator[bytes]:
    """What `data` holds, as JSON, for the vectors (n, d) of all inputs. Raises LikenessError `out_of_range`."""
    scores = _scores(request, vectors)
    # Rounding can carry the cosine of equal texts a hair past 1.
    are_unit = request.model is not None or request.metric == "cosine"
    scores = np.clip(scores, -1.0, 1.0) if are_unit else as_float32(scores)
    if request.a is not None:
        return row_items(scores)
    places = np.arange(len(scores)) if request.pairs else np.argsort(-scores, kind="stable")[: request.top_k]
    return score_items(scores[places], places.tolist())


def _scores(request: SimilarityRequest, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Dot products: of pairs (n,), of the query with each document (n,), or of `a` with `b` (rows, columns)."""
    with np.errstate(over="ignore", invalid="ignore"):  # of large vectors; they are refused for it
        if request.pairs is not None:
            pairs: npt.NDArray[Any] = np.einsum("id,id->i", vectors[0::2], vectors[1::2])
            return pairs
        rows = 1 if request.a is None else len(request.a)
        matrix: npt.NDArray[Any] = vectors[:rows] @ vectors[rows:].T
        return matrix[0] if request.a is None else matrix
