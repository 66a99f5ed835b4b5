"""/v1/similarity: how alike texts are under a model, or vectors under an adapter."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request

from api_schemas.embeddings import Given
from api_schemas.similarity import SimilarityRequest, SimilarityResponse, SimilarityScore
from service.keys import CallerDep
from service.model_names import NamedModel
from service.presence import while_client_waits
from service.routes.embeddings import EngineDep, embed, usage_of
from service.state import StateDep
from service.strict_route import StrictRoute

router = APIRouter(prefix="/v1/similarity", tags=["inference"], route_class=StrictRoute)


@router.post("")
async def compare(
    request: SimilarityRequest, http: Request, caller: CallerDep, state: StateDep, engine: EngineDep
) -> SimilarityResponse:
    """Cosine similarity of pairs of texts, or of a query and documents, the nearest first."""
    model = await state.catalogue.model(caller.team_id, request.model)
    inputs, names = _inputs(request)
    embedded = await while_client_waits(http, embed(engine, model, inputs, names, _prompts(request, model, names)))
    scores = _scores_of_pairs(embedded.vectors) if request.pairs else _ranked(embedded.vectors, request.top_k)
    return SimilarityResponse(data=scores, model=request.model, model_version=model.name, usage=usage_of(embedded))


def _inputs(request: SimilarityRequest) -> tuple[list[Given], list[str]]:
    """All inputs of a request, and their names in it: pair by pair, or the query and then the documents."""
    named: dict[str, Given] = {}
    for row, pair in enumerate(request.pairs or []):
        named |= {f"pairs.{row}.{side}": given for side, given in enumerate(pair)}
    if request.query is not None:
        named["query"] = request.query
    documents: Sequence[Given] = request.documents or []
    named |= {f"documents.{row}": given for row, given in enumerate(documents)}
    return list(named.values()), list(named)


def _prompts(request: SimilarityRequest, model: NamedModel, names: Sequence[str]) -> list[str | None]:
    """What each input stands behind: the request itself says which is the query, and which are documents."""
    if request.pairs is not None:
        return [request.input_type] * len(names)
    if model.reads == "vectors":
        return [None] * len(names)
    return ["query" if name == "query" else "document" for name in names]


def _scores_of_pairs(vectors: npt.NDArray[np.float32]) -> list[SimilarityScore]:
    return _scores(np.einsum("id,id->i", vectors[0::2], vectors[1::2]))


def _ranked(vectors: npt.NDArray[np.float32], top_k: int | None) -> list[SimilarityScore]:
    scores = _scores(vectors[1:] @ vectors[0])
    return sorted(scores, key=lambda score: (-score.score, score.index))[:top_k]


def _scores(cosines: npt.NDArray[np.float32]) -> list[SimilarityScore]:
    # Rounding can carry the cosine of equal texts a hair past 1.
    clipped = np.clip(cosines, -1.0, 1.0).tolist()
    return [SimilarityScore(index=index, score=score) for index, score in enumerate(clipped)]
