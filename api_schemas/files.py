"""Datasets: uploaded files of training or validation rows."""

from typing import Literal

from pydantic import Field

from api_schemas.base import ResponseModel

FileStatus = Literal["uploaded", "processed", "error"]
#: What rows may be that are trained on.
TrainingFormat = Literal["pairs", "triplets", "labels", "views", "texts", "vectors", "vector_pairs"]
#: What rows may be: on scored pairs a job is evaluated only.
DataFormat = Literal[TrainingFormat, "scored_pairs"]
#: What a file may be found to hold: rows, or judgements about texts of two other files.
FileFormat = Literal[DataFormat, "relevance"]

#: The longest row of a dataset, in bytes.
MAX_ROW_BYTES = 1024 * 1024
#: The most refused rows a file's `errors` lists; `error_count` counts them all.
MAX_LISTED_ERRORS = 100


class RowError(ResponseModel):
    """One refused row: where it is, what is wrong with it, and what to do."""

    row: int | None = Field(description="Line number, from 1; null when the whole file is meant.")
    field: str | None = Field(default=None, description="The field that is wrong, if it is one field.")
    code: str = Field(description="A code of the error table.")
    message: str = Field(description="What is wrong and what to do about it.")


class Validation(ResponseModel):
    """How far the validation of a file is."""

    bytes_read: int = Field(description="How many bytes have been read; brought up to date every two seconds.")
    bytes: int = Field(description="How many there are.")
    started_at: int = Field(description="Unix time, seconds.")


class File(ResponseModel):
    """A dataset, in OpenAI's shape; `validation`, `rows`, `format`, `errors` and `sha256` are ours."""

    id: str
    object: Literal["file"] = "file"
    bytes: int = Field(description="Size in bytes.")
    created_at: int = Field(description="Unix time, seconds.")
    filename: str
    purpose: str
    status: FileStatus = Field(description="uploaded: being validated; processed: usable; error: see errors.")
    status_details: str | None = Field(default=None, description="Why the file can't be used, or not by itself.")
    validation: Validation | None = Field(
        default=None, description="How far validation is; null before it begins and once it has ended."
    )
    expires_at: int | None = None
    sha256: str = Field(description="SHA-256 of the bytes as sent, hexadecimal.")
    format: FileFormat | None = Field(default=None, description="What its rows are, once validated.")
    rows: int | None = Field(default=None, description="Number of rows, once validated.")
    error_count: int = Field(default=0, description="How many rows were refused.")
    errors: list[RowError] = Field(default_factory=list, description="The first refused rows.")
