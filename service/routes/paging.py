"""The query parameters of every list, and the page they ask for."""

from collections.abc import Sequence
from typing import Annotated, TypeVar

from fastapi import Query

from api_schemas.pages import MAX_PAGE, Page

Item = TypeVar("Item")

After = Annotated[str | None, Query(max_length=200, description="The id of the last item already seen.")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many items a page may hold.")]


def page_of(items: Sequence[Item], ids: Sequence[str], *, has_more: bool) -> Page[Item]:
    """The page with these items; `ids` are theirs, in order."""
    return Page(
        data=list(items),
        has_more=has_more,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
    )
