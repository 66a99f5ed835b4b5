"""Embeddings: texts, or vectors for an adapter, in; unit vectors out."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from api_schemas.base import RequestModel, ResponseModel

#: The most texts a request may hold.
MAX_INPUTS = 2048
#: The longest text a request may hold, in characters: many times what any encoder here reads.
MAX_TEXT_CHARACTERS = 1_000_000

#: A text, or a vector for an adapter.
Given = str | list[float]


def text_in(value: Any, name: str) -> str:
    """A text. Raises PydanticCustomError for what is none, is empty or is too long."""
    if not isinstance(value, str):
        raise PydanticCustomError("invalid_type", "{name} must be a string", {"name": name})
    if not value:
        raise PydanticCustomError("empty_input", "{name} is an empty string; leave it out", {"name": name})
    if len(value) > MAX_TEXT_CHARACTERS:
        raise PydanticCustomError(
            "input_too_long",
            "{name} has {length} characters; at most {most} are accepted. Split it into passages",
            {"name": name, "length": len(value), "most": MAX_TEXT_CHARACTERS},
        )
    return value


def _refuse_too_many(value: list[Any], name: str, noun: str) -> None:
    """Raise PydanticCustomError for more inputs than fit one request."""
    if len(value) > MAX_INPUTS:
        raise PydanticCustomError(
            "too_many_inputs",
            "{name} holds {count} {noun}; at most {most} fit one request. Send several requests",
            {"name": name, "count": len(value), "noun": noun, "most": MAX_INPUTS},
        )


def texts_in(value: Any, name: str) -> list[str]:
    """The texts of a list. Raises PydanticCustomError, which names what is wrong with them."""
    if not isinstance(value, list):
        kinds = "a string or a list of strings" if name in ("input", "inputs") else "a list of strings"
        raise PydanticCustomError("invalid_type", "{name} must be {kinds}", {"name": name, "kinds": kinds})
    if not value:
        raise PydanticCustomError("empty_input", "{name} is an empty list; send at least one text", {"name": name})
    _refuse_too_many(value, name, "texts")
    if isinstance(value[0], int | list):
        raise PydanticCustomError(
            "token_input_unsupported",
            "{name} holds token ids; encoders here have their own tokenizers, so send the texts themselves",
            {"name": name},
        )
    return [text_in(item, f"{name}.{index}") for index, item in enumerate(value)]


def _one_or_more(value: Any, name: str) -> list[str] | list[list[float]]:
    if isinstance(value, str):
        return [text_in(value, name)]
    return [_vector(value, name)] if type(_first(value)) in (int, float) else _list(value, name)


def _list(value: Any, name: str) -> list[str] | list[list[float]]:
    if not isinstance(_first(value), list):
        return texts_in(value, name)
    _refuse_too_many(value, name, "vectors")
    return [_vector(item, f"{name}.{index}") for index, item in enumerate(value)]


def _input(value: Any, name: str) -> Given:
    return _vector(value, name) if isinstance(value, list) else text_in(value, name)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else None


def _vector(value: Any, name: str) -> list[float]:
    """Numbers, such as strict JSON has them; whether a model takes them, its dimension decides."""
    if not isinstance(value, list) or not value or not set(map(type, value)) <= {int, float}:
        raise PydanticCustomError(
            "invalid_type", "{name} must be a vector, which is a list of numbers, as the first is", {"name": name}
        )
    return value


Input = Annotated[Given, BeforeValidator(lambda value: _input(value, "the text"))]
Inputs = Annotated[
    list[str] | list[list[float]],
    BeforeValidator(lambda value: _list(value, "the list"), json_schema_input_type=list[str] | list[list[float]]),
    Field(min_length=1, max_length=MAX_INPUTS),
]
#: What `input` takes: one of them, or a list; always a list once parsed.
EmbeddingInput = Annotated[
    list[str] | list[list[float]],
    BeforeValidator(
        lambda value: _one_or_more(value, "input"),
        json_schema_input_type=str | list[str] | list[float] | list[list[float]],
    ),
    Field(min_length=1, max_length=MAX_INPUTS),
]


class EmbeddingRequest(RequestModel):
    """Texts to embed with a model, or vectors to take through an adapter."""

    model: str = Field(description="A base model's name, a tuned model's id, or an alias.")
    input: EmbeddingInput = Field(description=f"One text, or up to {MAX_INPUTS}; for an adapter, vectors.")
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: little-endian float32, a third of the bytes."
    )
    dimensions: int | None = Field(
        default=None, ge=1, description="Keep the first so many dimensions and normalise again."
    )
    input_type: str | None = Field(
        default=None,
        max_length=64,
        description="query or document: what the texts are, for models with prompts. Or the name of another prompt.",
    )
    user: str | None = Field(default=None, description="Accepted for OpenAI's clients; not used.")


class Embedding(ResponseModel):
    """The unit vector of one text."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="The text's place in the request, from 0.")
    embedding: list[float] | str = Field(description="Floats, or base64 of little-endian float32.")


class EmbeddingUsage(ResponseModel):
    """What a request cost, and what of it was not read."""

    prompt_tokens: int = Field(description="Tokens read by the encoder, after cutting.")
    total_tokens: int
    truncated: list[int] = Field(
        default_factory=list, description="Places of the texts that were cut to the model's max_seq_length."
    )


class EmbeddingResponse(ResponseModel):
    """Unit vectors in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str = Field(description="As the request names it.")
    model_version: str = Field(description="The model that answered, which may be what an alias stands for.")
    usage: EmbeddingUsage
