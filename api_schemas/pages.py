"""Cursor pages: `after` is the id of the last item seen."""

from typing import Generic, Literal, TypeVar

from pydantic import Field

from api_schemas.base import ResponseModel

Item = TypeVar("Item")

#: The most items a page may hold.
MAX_PAGE = 1000


class Page(ResponseModel, Generic[Item]):
    """One page of a list. Ask for the next with `after=last_id` while `has_more` is true."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = Field(description="Whether more items follow this page.")
    first_id: str | None = None
    last_id: str | None = None


class Deleted(ResponseModel):
    """The answer to a deletion."""

    id: str
    object: str
    deleted: Literal[True] = True
