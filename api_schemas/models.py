"""Models: the base encoders this installation offers and the ones its teams have tuned."""

from typing import Literal

from pydantic import Field

from api_schemas.base import ResponseModel

#: What a model takes: texts, or vectors that another encoder made.
Reads = Literal["texts", "vectors"]


class RefusedMode(ResponseModel):
    """A way to compute that was tried and isn't used."""

    mode: str
    reason: str


class ServingMode(ResponseModel):
    """How the process that was asked computes a model's forward passes."""

    single: str = Field(description="For one text: torch-fp32, torch-bf16 or onnxruntime-fp32.")
    several: str = Field(description="For several.")
    chosen: bool = Field(description="Whether all modes were tried; until then it is torch-fp32.")
    refused: list[RefusedMode] = Field(default_factory=list)


class Model(ResponseModel):
    """A model, in OpenAI's shape; the members after `owned_by` are ours."""

    id: str = Field(description="A base model's name, or ft:{base}:{team}:{suffix}:{id}.")
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time, seconds.")
    owned_by: str = Field(description="The team's id, or 'likeness' for a base model.")
    kind: Literal["base", "fine_tuned"]
    base_model: str = Field(description="The base encoder's name; for a base model its own.")
    reads: Reads = Field(description="What it takes as input. vectors: those that another encoder made.")
    dimension: int | None = Field(
        description="Length of its vectors; null for `adapter` and `scratch`, which a job's file or options decide."
    )
    max_seq_length: int | None = Field(
        description="Tokens it reads, unless for `scratch` a job says otherwise; longer texts are cut. null for what "
        "reads vectors."
    )
    weights_sha256: str | None = Field(
        default=None, description="SHA-256 of its weights file, hexadecimal; null where none is promised."
    )
    fine_tuning_job: str | None = Field(default=None, description="The job that made it.")
    training_file: str | None = Field(default=None, description="The file it learned from.")
    damage: str | None = Field(
        default=None,
        description="What was found wrong with its stored files; it is not served until they are mended.",
    )
    mode: ServingMode | None = Field(
        default=None, description="How it is computed; null where the process that was asked has it not in memory."
    )
    evaluation_split: str | None = Field(
        default=None, description="The id of the rows that its job's evaluation asked about."
    )
