"""The two bases of every model on the wire."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

Auto = Literal["auto"]
#: `search` in place of a value that the job is to find by trials.
AutoOrSearch = Literal["auto", "search"]


class RequestModel(BaseModel):
    """A request: JSON types are taken literally ("7" is not 7) and unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class ResponseModel(BaseModel):
    """An answer. Clients may meet more fields in later versions, never fewer."""

    model_config = ConfigDict(extra="forbid")


def _printable(name: str) -> str:
    bad = next((character for character in name if not character.isprintable()), None)
    if bad is not None:
        raise PydanticCustomError(
            "invalid_character",
            "must not hold control characters (found U+{code})",
            {"code": f"{ord(bad):04X}"},
        )
    return name


#: A name people read: no control characters, so that it can stand in a header or a log line.
PrintableStr = Annotated[str, AfterValidator(_printable)]
