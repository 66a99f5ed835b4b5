"""What the batches of an epoch can hold, known from counts of rows and labels before a batch is made."""

from api_schemas.amounts import number
from api_schemas.defaults import SMALLEST_BATCH
from api_schemas.reports import LabelBalance


def batches_an_epoch(rows: int, batch_size: int) -> int:
    """About how many; a row that is left over has no negative and makes none."""
    return max(1, -(-(rows - 1) // batch_size))


def too_few_classes(balance: LabelBalance, rows: int, batch_size: int) -> str | None:
    """Why batches of this size would hold one label only, most of them or all; None if they hold two."""
    if batch_size < SMALLEST_BATCH:
        return (
            f"A batch of {batch_size} holds no two rows of each of two labels. "
            f"Choose a batch_size of {SMALLEST_BATCH} or more."
        )
    batches = batches_an_epoch(rows, batch_size)
    if 2 * balance.batches_with_two >= batches:
        return None
    return (
        f"Only {balance.batches_with_two} of {batches} batches could hold a second label: "
        f"{number(balance.largest.rows)} of {number(rows)} rows are {balance.largest.label!r}. "
        "Keep fewer of those, add rows of other labels, or choose a larger batch_size."
    )
