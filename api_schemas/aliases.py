"""Aliases: names that a team gives to models, and may move to others without a change to its clients."""

from typing import Literal

from pydantic import Field

from api_schemas.base import RequestModel, ResponseModel

#: What an alias may be called. Names of base models that came as folders, and of tuned models, don't look like that.
ALIAS_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class AliasPut(RequestModel):
    """What an alias is to stand for."""

    model: str = Field(description="A base model's name or a tuned model's id; not another alias.")


class Alias(ResponseModel):
    """A name of the team's own for a model, which `model` of other requests takes too."""

    name: str
    object: Literal["alias"] = "alias"
    model: str = Field(description="The model that it stands for.")
    created_at: int = Field(description="Unix time, seconds.")
    updated_at: int = Field(description="When it came to stand for that model; Unix time, seconds.")
