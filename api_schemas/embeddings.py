"""Embeddings: texts in, unit vectors out."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from api_schemas.base import RequestModel, ResponseModel

#: The most texts a request may hold.
MAX_INPUTS = 2048
#: The longest text a request may hold, in characters: many times what any encoder here reads.
MAX_TEXT_CHARACTERS = 1_000_000


def _text(value: Any, name: str) -> str:
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


def _texts(value: Any, name: str) -> list[str]:
    if not isinstance(value, list):
        kinds = "a string or a list of strings" if name == "input" else "a list of strings"
        raise PydanticCustomError("invalid_type", "{name} must be {kinds}", {"name": name, "kinds": kinds})
    if not value:
        raise PydanticCustomError("empty_input", "{name} is an empty list; send at least one text", {"name": name})
    if len(value) > MAX_INPUTS:
        raise PydanticCustomError(
            "too_many_inputs",
            "{name} holds {count} texts; at most {most} fit one request. Send several requests",
            {"name": name, "count": len(value), "most": MAX_INPUTS},
        )
    if isinstance(value[0], int | list):
        raise PydanticCustomError(
            "token_input_unsupported",
            "{name} holds token ids; encoders here have their own tokenizers, so send the texts themselves",
            {"name": name},
        )
    return [_text(item, f"{name}.{index}") for index, item in enumerate(value)]


def _text_or_texts(value: Any) -> list[str]:
    return [_text(value, "input")] if isinstance(value, str) else _texts(value, "input")


Text = Annotated[str, BeforeValidator(lambda value: _text(value, "the text"))]
Texts = Annotated[
    list[str],
    BeforeValidator(lambda value: _texts(value, "the list")),
    Field(min_length=1, max_length=MAX_INPUTS),
]
#: What `input` takes: one text or a list of them; always a list once parsed.
EmbeddingInput = Annotated[
    list[str],
    BeforeValidator(_text_or_texts, json_schema_input_type=str | list[str]),
    Field(min_length=1, max_length=MAX_INPUTS),
]


class EmbeddingRequest(RequestModel):
    """Texts to embed with a model."""

    model: str = Field(description="A base model's name or a tuned model's id.")
    input: EmbeddingInput = Field(description=f"One text, or up to {MAX_INPUTS}.")
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: little-endian float32, a quarter of the bytes."
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
    model: str
    usage: EmbeddingUsage
