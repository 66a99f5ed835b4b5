"""Similarity: how alike texts are under a model, or vectors under an adapter or as they are."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from api_schemas.base import RequestModel, ResponseModel
from api_schemas.embeddings import MAX_INPUTS, EmbeddingUsage, Input, Inputs

InputPair = Annotated[list[Input], Field(min_length=2, max_length=2)]
MAX_PAIRS = MAX_INPUTS // 2
#: The most scores a matrix may have: about 16 MB of JSON.
MAX_SCORES = 1024 * 1024


class SimilarityRequest(RequestModel):
    """`pairs`, or a `query` against `documents`, or every one of `a` against every one of `b`.

    They are texts, or vectors for an adapter. Without a model all are vectors and are compared as they are. A model
    with prompts has the query behind its prompt `query` and the documents behind its prompt `document`.
    """

    model: str | None = Field(
        default=None,
        description="A base model's name, a tuned model's id, or an alias. Without one, vectors are compared.",
    )
    pairs: Annotated[list[InputPair], Field(min_length=1, max_length=MAX_PAIRS)] | None = Field(
        default=None, description="Pairs of texts; one score each, in order."
    )
    input_type: str | None = Field(
        default=None,
        max_length=64,
        description="What the texts of `pairs`, or of `a` and `b`, are, for models with prompts: query, document, or "
        "another's name.",
    )
    query: Input | None = Field(default=None, description="A text to compare with every document.")
    documents: Inputs | None = Field(default=None, description="Texts to rank by similarity to the query.")
    top_k: int | None = Field(
        default=None, ge=1, le=MAX_INPUTS, description="Return only the nearest so many documents."
    )
    a: Inputs | None = Field(default=None, description="Texts, each of which gets a row of scores.")
    b: Inputs | None = Field(
        default=None, description=f"Texts, a score for each in every row; `a` times `b` may be {MAX_SCORES}."
    )
    metric: Literal["cosine", "dot"] = Field(
        default="cosine",
        description="They differ for vectors without a model only: a model's vectors have length 1.",
    )

    @field_validator("b")
    @classmethod
    def _no_larger_matrix_than_fits(
        cls, columns: list[str] | list[list[float]] | None, info: ValidationInfo
    ) -> list[str] | list[list[float]] | None:
        rows = info.data.get("a") or []
        if columns is not None and len(rows) * len(columns) > MAX_SCORES:
            raise PydanticCustomError(
                "too_many_inputs",
                "{rows} of a against {columns} of b are {count} scores; at most {most} fit one request. "
                "Send at most {fitting} of a at a time",
                {
                    "rows": len(rows),
                    "columns": len(columns),
                    "count": len(rows) * len(columns),
                    "most": MAX_SCORES,
                    "fitting": MAX_SCORES // len(columns),
                },
            )
        return columns

    @model_validator(mode="after")
    def _one_of_the_three_forms(self) -> Self:
        ranked = (self.query is not None, self.documents is not None)
        crossed = (self.a is not None, self.b is not None)
        is_ranking = all(ranked) and self.pairs is None and not any(crossed) and self.input_type is None
        is_rest = (self.pairs is not None, *crossed) in ((True, False, False), (False, True, True))
        if is_ranking or (is_rest and not any(ranked) and self.top_k is None):
            return self
        raise PydanticCustomError(
            "invalid_value",
            "send either 'pairs', or 'query' with 'documents' (and 'top_k' if you like), or 'a' with 'b'; "
            "'input_type' is for 'pairs' and for 'a' with 'b'",
        )


class SimilarityScore(ResponseModel):
    """The score of one pair, or of the query and one document."""

    index: int = Field(description="The pair's or document's place in the request, from 0.")
    score: float = Field(description="Cosine similarity, −1 to 1, or the dot product; a float32.")


class SimilarityRow(ResponseModel):
    """The scores of one of `a` with all of `b`."""

    index: int = Field(description="The place in `a`, from 0.")
    scores: list[float] = Field(description="One for each of `b`, in its order; float32.")


class SimilarityUsage(ResponseModel):
    """What a comparison cost; the last line where an answer is lines of JSON."""

    model: str | None = Field(description="As the request has it; null for vectors that were compared as they are.")
    model_version: str | None = Field(description="The model that answered, which may be what an alias stands for.")
    usage: EmbeddingUsage


class SimilarityResponse(SimilarityUsage):
    """Scores: of pairs in their order, of documents from most to least alike, or a row for each of `a`."""

    object: Literal["list"] = "list"
    data: list[SimilarityScore] | list[SimilarityRow]
