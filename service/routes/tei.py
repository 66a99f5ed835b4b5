"""The routes of text-embeddings-inference, for its clients: at the root, and for any model below /tei/{model}."""

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Annotated, cast

import numpy as np
from fastapi import APIRouter, Depends, Path, Request, Response

from api_schemas.errors import LikenessError
from api_schemas.tei import (
    MAX_TOKENIZED_CHARACTERS,
    EmbeddingModelType,
    EmbedRequest,
    Info,
    ModelType,
    SentenceSimilarityRequest,
    SimpleToken,
    TextOptions,
    TokenizeRequest,
)
from encoders.prompts import UnknownPromptError
from encoders.text import TextEncoder
from encoders.tokenizer import TextTokenizer
from service.embedding_json import rows_body
from service.errors import shutting_down
from service.http_protocol import StrictHTTPProtocol
from service.inference.engine import Embedded, InferenceEngine
from service.inference_requests import embedded_for
from service.json_numbers import json_numbers
from service.keys import CallerDep
from service.model_names import NamedModel
from service.routes.embeddings import EngineDep, check_dimensions, embed, shorten
from service.state import ServiceState, StateDep
from service.tei_route import TEI_ERROR_RESPONSES, TeiRoute

_TAG = "text-embeddings-inference"
_NAMED = "/tei/{model:path}"


async def served_model(http: Request, caller: CallerDep, state: StateDep) -> NamedModel:
    """The model that the path names, or else the default.

    Raises LikenessError `model_not_found`, `wrong_input` for one that reads vectors, and `invalid_value` for one that
    is still to be trained.
    """
    name = http.path_params.get("model", state.settings.default_model)
    model = await state.catalogue.model(caller.team_id, name)
    if model.reads != "texts":
        message = f"{model.name} reads vectors, and these routes are for texts. POST /v1/embeddings takes vectors."
        raise LikenessError("wrong_input", message, param="model")
    if model.max_seq_length is None or model.dimension is None:
        message = f"{model.name} is not trained: name a model that a job has made of it."
        raise LikenessError("invalid_value", message, param="model")
    return model


ModelDep = Annotated[NamedModel, Depends(served_model)]


def _model_in_path(model: Annotated[str, Path(description="A base model's name or a tuned model's id.")]) -> None:
    """What `served_model` reads, for the documentation."""


operations = APIRouter(route_class=TeiRoute)
health_router = APIRouter(tags=[_TAG], route_class=TeiRoute, responses=TEI_ERROR_RESPONSES)


@operations.post("/embed", response_model=list[list[float]])
async def embed_texts(
    request: EmbedRequest, http: Request, model: ModelDep, state: StateDep, engine: EngineDep
) -> Response:
    """Unit vectors of texts, in their order."""
    check_dimensions(request.dimensions, model)
    embedded = await _embed(http, state, engine, model, request, request.inputs, _names("inputs", request.inputs))
    body = await asyncio.to_thread(rows_body, shorten(embedded.vectors, request.dimensions))
    return Response(body, media_type="application/json")


@operations.post("/similarity", response_model=list[float])
async def compare_sentences(
    request: SentenceSimilarityRequest, http: Request, model: ModelDep, state: StateDep, engine: EngineDep
) -> Response:
    """The cosine similarity of a sentence with each of the others, in their order."""
    texts = [request.inputs.source_sentence, *request.inputs.sentences]
    names = ["inputs.source_sentence", *_names("inputs.sentences", request.inputs.sentences)]
    embedded = await _embed(http, state, engine, model, request.parameters or TextOptions(), texts, names)
    # Rounding can carry the cosine of equal texts a hair past 1.
    cosines = np.clip(embedded.vectors[1:] @ embedded.vectors[0], -1.0, 1.0)
    return Response(b"[%b]" % b",".join(json_numbers(cosines)), media_type="application/json")


@operations.post("/tokenize", response_model=list[list[SimpleToken]])
async def tokenize(request: TokenizeRequest, model: ModelDep, engine: EngineDep) -> Response:
    """All tokens of each text, also those beyond what the model reads."""
    encoder = await _encoder(engine, model)
    before = _prompt(encoder, request.prompt_name)
    characters = sum(len(before) + len(text) for text in request.inputs)
    if characters > MAX_TOKENIZED_CHARACTERS:
        message = f"`inputs` has {characters} characters; at most {MAX_TOKENIZED_CHARACTERS} are tokenized at a time."
        raise LikenessError("input_too_long", f"{message} Send several requests.", param="inputs")
    texts = [before + text for text in request.inputs]
    body = await asyncio.to_thread(_tokens_body, encoder.tokenizer, texts, request.add_special_tokens)
    return Response(body, media_type="application/json")


@operations.get("/info")
async def info(http: Request, model: ModelDep, state: StateDep, engine: EngineDep) -> Info:
    """The model, and what requests may hold."""
    encoder = await _encoder(engine, model)
    return Info(
        model_id=model.name,
        model_sha=model.weights_sha256,
        served_model_name=model.name,
        model_type=ModelType(embedding=EmbeddingModelType(pooling=encoder.pooling)),
        max_concurrent_requests=StrictHTTPProtocol.max_connections,
        max_input_length=encoder.max_seq_length,
        max_batch_tokens=state.settings.tokens_per_batch,
        tokenization_workers=os.cpu_count() or 1,
        version=http.app.version,
    )


@health_router.get("/health", response_class=Response)
async def health(state: StateDep, engine: EngineDep) -> Response:
    """Nothing, with status 200, if a text gets embedded and the process is not asked to stop."""
    if state.drain.is_asked:
        raise shutting_down()
    try:
        await engine.probe()
    except (LikenessError, TimeoutError) as error:
        raise LikenessError("service_unavailable", "No text gets embedded now; the log says why.") from error
    return Response()


async def model_health(_model: ModelDep, state: StateDep, engine: EngineDep) -> Response:
    """As /health, if there is the model."""
    return await health(state, engine)


async def _embed(
    http: Request,
    state: ServiceState,
    engine: InferenceEngine,
    model: NamedModel,
    options: TextOptions,
    texts: Sequence[str],
    names: Sequence[str],
) -> Embedded:
    """The texts' vectors. Raises LikenessError for a prompt that isn't there, and for a text that must not be cut."""

    async def embedding() -> Embedded:
        _prompt(await _encoder(engine, model), options.prompt_name)
        return await embed(engine, model, texts, names, [options.prompt_name] * len(texts))

    embedded = await embedded_for(http, state, embedding(), len(texts))
    if embedded.truncated:
        _refuse_cut(options, names[embedded.truncated[0]], model)
    return embedded


def _refuse_cut(options: TextOptions, name: str, model: NamedModel) -> None:
    if options.truncate is False:
        message = f"`{name}` has more than the {model.max_seq_length} tokens that {model.name} reads."
        raise LikenessError("input_too_long", f"{message} Split it, or send `truncate: true`.", param=name)
    if options.truncation_direction.lower() == "left":
        message = f"`{name}` has to be cut, and texts are cut at their end only. Cut it yourself, or leave this out."
        raise LikenessError("invalid_value", message, param="truncation_direction")


def _tokens_body(tokenizer: TextTokenizer, texts: Sequence[str], add_special_tokens: bool) -> bytes:
    # Without pydantic, which would hold up the event loop for a hundred thousand of them.
    found = tokenizer.tokens(texts, add_special_tokens=add_special_tokens)
    return json.dumps([[token._asdict() for token in tokens] for tokens in found]).encode()


async def _encoder(engine: InferenceEngine, model: NamedModel) -> TextEncoder:
    return cast(TextEncoder, await engine.encoder(model))


def _prompt(encoder: TextEncoder, name: str | None) -> str:
    try:
        return encoder.prompts.of(name)
    except UnknownPromptError as error:
        raise LikenessError("invalid_value", f"`prompt_name`: {error}", param="prompt_name") from error


def _names(field: str, texts: Sequence[str]) -> list[str]:
    return [f"{field}.{index}" for index in range(len(texts))] if len(texts) > 1 else [field]


_of_named = APIRouter(route_class=TeiRoute, dependencies=[Depends(_model_in_path)])
_of_named.include_router(operations)
_of_named.get("/health", response_class=Response)(model_health)

router = APIRouter(tags=[_TAG], route_class=TeiRoute, responses=TEI_ERROR_RESPONSES)
router.include_router(operations)
router.include_router(_of_named, prefix=_NAMED)
# Clients that are given nothing but an address send to it what /embed takes.
# The last one takes all that is left below /tei.
router.post("/", response_model=list[list[float]])(embed_texts)
router.post(_NAMED, response_model=list[list[float]], dependencies=[Depends(_model_in_path)])(embed_texts)
