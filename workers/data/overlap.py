"""What of an evaluation file stands in the training file, in whatever rows: it measures memory, not learning."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from api_schemas.reports import MAX_LISTED_ROWS, Overlap, SameAs
from workers.data.contents import content_ids
from workers.data.occurrences import OCCURRENCE, Occurrences
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.data.sorted_runs import Records, SortedRuns, group_starts

Integers = npt.NDArray[np.int64]

#: An evaluation file more than this share of whose rows can be put together from training texts is refused.
MOST_OF_IT = 0.5
_INPUT = np.dtype([("id", np.int64), ("index", np.int64), ("row", np.int64)])
_HELD = 64 * 1024


class Evaluation:
    """Takes the rows of an evaluation file. Its temporary files are gone when it is left.

    Memory grows by one byte a row, and 24 for each row that has the most frequent text; all else is in files.
    """

    def __init__(self, *, scratch: Path | None = None) -> None:
        self._scratch = scratch
        self._records: list[tuple[int, int, int]] = []
        self._rows = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="likeness-", dir=self._scratch)))
            self._runs = stack.enter_context(SortedRuns(folder / "evaluation", _INPUT))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, number: int, row: Row) -> None:
        """Take a row that has this number in its file. Raises OSError if there is no room for temporary files."""
        self._records += [(content, self._rows, number) for content in content_ids(row.inputs).tolist()]
        self._rows += 1
        if len(self._records) >= _HELD:
            self._write()

    def overlap(self, training: Occurrences, *, identical: bool = False) -> Overlap:
        """Compare with the contents of the training file; `identical` is passed on."""
        self._write()
        unseen = np.zeros(self._rows, dtype=np.bool_)
        texts = shared = 0
        first: list[SameAs] = []
        for mine, theirs in _side_by_side(self._runs.parts(), training.groups()):
            place = np.minimum(np.searchsorted(theirs["id"], mine["id"]), len(theirs) - 1)
            seen = theirs["id"][place] == mine["id"]
            unseen[mine["index"][~seen]] = True
            starts = group_starts(mine["id"])
            texts += len(starts)
            shared += int(seen[starts].sum())
            first = _first(first, mine, theirs["first"][place], starts[seen[starts]])
        rows = int((~unseen).sum())
        return Overlap(
            rows=self._rows,
            rows_in_training=rows,
            texts=texts,
            texts_in_training=shared,
            identical=identical,
            first=first,
        )

    def _write(self) -> None:
        if self._records:
            records = np.array(self._records, dtype=_INPUT)
            self._runs.append(records[np.argsort(records["id"], kind="stable")])
            self._records = []


def rows_in_training(training: Sequence[Prepared], evaluation: Prepared) -> int:
    """How many rows of `evaluation` consist of inputs that all stand in `training`, in whatever rows of any of it.

    Memory: some 20 bytes for each input of `evaluation`.
    """
    contents, place = np.unique(evaluation.contents, return_inverse=True)
    known = np.zeros(len(contents), dtype=bool)
    for part in chain.from_iterable(map(_parts, training)):
        found = np.minimum(np.searchsorted(contents, part), len(contents) - 1)
        known[found[contents[found] == part]] = True
    missing = np.add.reduceat(~known[place], evaluation.row_starts[:-1], dtype=np.int64)
    return int((missing == 0).sum())


def _parts(data: Prepared) -> Iterator[Integers]:
    """The contents, so many at a time that little memory is needed."""
    return (data.contents[start : start + _HELD] for start in range(0, data.items, _HELD))


def is_in_training(overlap: Overlap) -> bool:
    """Whether nothing can be told from the evaluation file: it is the training file, or most of it is in there."""
    return overlap.identical or overlap.rows_in_training > MOST_OF_IT * overlap.rows


def _side_by_side(mine: Iterator[Records], theirs: Iterator[Records]) -> Iterator[tuple[Records, Records]]:
    """Pieces of both, by id and none of them empty, such that what is equal meets. All of `mine` comes.

    Beside what is greater than all of theirs comes a record that equals nothing.
    """
    theirs = (part for part in theirs if len(part))
    nothing = np.full(1, -1, dtype=OCCURRENCE)
    their_part = next(theirs, nothing)
    for part in mine:
        while len(part):
            while their_part is not nothing and their_part["id"][-1] < part["id"][0]:
                their_part = next(theirs, nothing)
            end = len(part) if their_part is nothing else np.searchsorted(part["id"], their_part["id"][-1], "right")
            yield part[:end], their_part
            part = part[end:]


def _first(first: list[SameAs], mine: Records, same_as: Integers, starts: Integers) -> list[SameAs]:
    earliest = starts[np.argsort(mine["row"][starts], kind="stable")[:MAX_LISTED_ROWS]]
    found = [SameAs(row=int(mine["row"][at]), same_as=int(same_as[at])) for at in earliest]
    return sorted(first + found, key=lambda each: (each.row, each.same_as))[:MAX_LISTED_ROWS]
