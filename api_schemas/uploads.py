"""Large uploads: a file sent in parts."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from api_schemas.base import PrintableStr, RequestModel, ResponseModel
from api_schemas.files import File

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]

#: The largest part, in bytes: what OpenAI's client cuts a file into.
MAX_PART_BYTES = 64 * 1024 * 1024
#: The most parts an upload may receive, those sent twice included.
MAX_PARTS = 10_000


def _no_expiry(policy: Any) -> Any:
    if policy is not None:
        raise PydanticCustomError("invalid_value", "Files here don't expire; leave 'expires_after' out.")
    return policy


class UploadCreate(RequestModel):
    """A request to send a file in parts."""

    filename: Annotated[PrintableStr, Field(min_length=1, max_length=4096)]
    purpose: Literal["fine-tune"]
    bytes: Annotated[int, Field(ge=1, description="The file's size in bytes; its parts must come to exactly this.")]
    mime_type: Annotated[PrintableStr, Field(min_length=1, max_length=255)] = Field(
        description="For OpenAI's clients. What a file holds is told by its content."
    )
    expires_after: Annotated[Any, AfterValidator(_no_expiry)] = Field(
        default=None, description="For OpenAI's clients. Only null: files here don't expire."
    )


class UploadComplete(RequestModel):
    """A request to make a file of parts."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_PARTS)] = Field(
        description="The parts, in the file's order. Parts that are not named are dropped."
    )
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{32}$", to_lower=True)] | None = Field(
        default=None, description="MD5 of the whole file, hexadecimal; if given, it is checked."
    )


class UploadPart(ResponseModel):
    """A part that has arrived, in OpenAI's shape; `bytes` and `sha256` are ours."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int = Field(description="Unix time, seconds.")
    upload_id: str
    bytes: int = Field(description="Size in bytes.")
    sha256: str = Field(description="SHA-256 of the part, hexadecimal.")


class Upload(ResponseModel):
    """A file on its way, in OpenAI's shape; `parts` is ours."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int = Field(description="The declared size of the whole file, in bytes.")
    created_at: int = Field(description="Unix time, seconds.")
    expires_at: int = Field(description="When it expires unless completed before; Unix time, seconds.")
    filename: str
    purpose: str
    status: UploadStatus
    file: File | None = Field(default=None, description="The file, once completed; null again once it is deleted.")
    parts: list[UploadPart] = Field(
        default_factory=list, description="What has arrived so far, in order of arrival; empty once the upload ended."
    )
