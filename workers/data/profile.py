"""What is in a file, told from a stream of its rows in bounded memory: duplicates, conflicts, balance, lengths.

Hashes of texts go to temporary files and are sorted there, a part at a time; the texts themselves are not kept, but
for a sample that is measured soon. A million pairs need about 130 MB of room in the temporary directory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import numpy as np
import numpy.typing as npt

from api_schemas.files import DataFormat
from api_schemas.reports import (
    MAX_LISTED_ROWS,
    Conflict,
    Conflicts,
    Duplicates,
    LabelBalance,
    Rows,
    SameAs,
    Scores,
    ScriptShare,
    TokenLengths,
    Vectors,
)
from workers.data.collisions import pairs_of, row_keys
from workers.data.conflicts import ConflictSearch
from workers.data.contents import content_ids
from workers.data.labels import Labels
from workers.data.lengths import SAMPLE, Measure, TextSample
from workers.data.occurrences import Occurrences
from workers.data.row import Row
from workers.data.samples import Reservoir
from workers.data.sorted_runs import Records
from workers.data.validation import StoppedError
from workers.training.batches import ROWS_PER_LABEL

Integers = npt.NDArray[np.int64]

#: Rows are taken in chunks that end with either of these.
_CHUNK_ROWS = 8192
_CHUNK_CHARACTERS = 4 * 1024 * 1024
#: Rows whose texts are kept, to measure the training of them, and how many characters of each text.
_EXAMPLES = 128
_EXAMPLE_CHARACTERS = 8192


@dataclass(frozen=True)
class Profile:
    """What was found in `rows` rows of one format."""

    format: DataFormat | None
    rows: int
    inputs: int  # of all rows
    sharing: float  # pairs of rows that share an input; see workers.data.collisions
    duplicates: Duplicates
    conflicts: Conflicts | None
    same_inputs: Rows
    negative_is_alike: Rows
    labels: LabelBalance | None
    token_lengths: TokenLengths | None
    scripts: list[ScriptShare]
    vectors: Vectors | None
    scores: Scores | None
    examples: list[tuple[str, ...]]  # texts of some rows drawn at random, cut to what an encoder might read


class Profiler:
    """Takes the rows of a file, in their order. Its temporary files are gone when it is left.

    measure: how to count tokens; None leaves token lengths out. scratch: where temporary files go, None for the
    system's directory. `should_stop` is asked now and then while the profile is made.
    """

    def __init__(
        self,
        measure: Measure | None = None,
        *,
        scratch: Path | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._measure = measure
        self._scratch = scratch
        self._should_stop = should_stop
        self._format: DataFormat | None = None
        self._pending = _Chunk()
        self._rows = self._inputs = 0
        self._same_inputs = _FirstRows()
        self._negative_is_alike = _FirstRows()
        self._sample = TextSample(measure)
        self._vectors = _VectorFacts()
        self._scores = _ScoreFacts()
        self._examples: Reservoir[tuple[str, ...]] = Reservoir(_EXAMPLES, seed=1)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="likeness-", dir=self._scratch)))
            #: Each input of the rows, with the rows that it stands in.
            self.contents = stack.enter_context(Occurrences(folder / "contents"))
            self._equal_rows = stack.enter_context(Occurrences(folder / "rows"))
            self._equal_sets = stack.enter_context(Occurrences(folder / "sets"))
            self._labels = stack.enter_context(Labels(folder / "labels"))
            self._conflicts = stack.enter_context(ConflictSearch(folder / "conflicts"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, number: int, row: Row) -> None:
        """Take a row that has this number in its file. Raises OSError if there is no room for temporary files."""
        self._format = row.format
        if self._pending.add(number, row):
            self._take_pending()

    def profile(self) -> Profile:
        """What was found in the rows so far. Raises StoppedError."""
        self._take_pending()
        duplicates, sharing = self._duplicates()
        has_labels = self._format in ("labels", "vectors")
        return Profile(
            format=self._format,
            rows=self._rows,
            inputs=self._inputs,
            sharing=sharing,
            duplicates=duplicates,
            conflicts=self._found_conflicts() if has_labels else None,
            same_inputs=self._same_inputs.rows(),
            negative_is_alike=self._negative_is_alike.rows(),
            labels=self._labels.balance(ROWS_PER_LABEL) if has_labels else None,
            token_lengths=self._sample.token_lengths(),
            scripts=self._sample.scripts(),
            vectors=self._vectors.vectors(),
            scores=self._scores.scores(),
            examples=self._examples.kept,
        )

    def _take_pending(self) -> None:
        rows, self._pending = self._pending.rows, _Chunk()
        if not rows:
            return
        numbers = np.array([number for number, _ in rows], dtype=np.int64)
        lengths = np.array([len(row.inputs) for _, row in rows], dtype=np.int64)
        inputs = list(chain.from_iterable(row.inputs for _, row in rows))
        ids = content_ids(inputs)
        self._rows += len(rows)
        self._inputs += len(inputs)
        self._look_at_contents(ids, lengths, numbers)
        labels = [row.label for _, row in rows if row.label is not None]
        if labels:
            label_ids = self._labels.add(labels, numbers)
            self._conflicts.add(ids, label_ids, numbers)
            # A row with a label has one input.
            ids = np.column_stack([ids, label_ids]).ravel()
            lengths = lengths + 1
        scores = np.array([row.score for _, row in rows if row.score is not None], dtype=np.float64)
        if len(scores):
            self._scores.add(scores)
            # A pair with another score is another row. Bits in place of an id, of which there are as many.
            ids = np.column_stack([ids.reshape(-1, 2), scores.view(np.int64)]).ravel()
            lengths = lengths + 1
        self._equal_rows.add(row_keys(ids, np.cumsum(lengths) - lengths, ordered=True), numbers)
        if isinstance(inputs[0], str):
            self._sample.add(cast(list[str], inputs))
            self._keep_examples([row for _, row in rows])
        else:
            self._vectors.add(np.array(inputs, dtype=np.float64))

    def _keep_examples(self, rows: list[Row]) -> None:
        kept = self._examples.kept
        for place in self._examples.add([cast(tuple[str, ...], row.inputs) for row in rows]):
            kept[place] = tuple(text[:_EXAMPLE_CHARACTERS] for text in kept[place])

    def _look_at_contents(self, ids: Integers, lengths: Integers, numbers: Integers) -> None:
        starts = np.cumsum(lengths) - lengths
        of_row = np.repeat(np.arange(len(lengths)), lengths)
        once = _once_a_row(ids, of_row)
        self.contents.add(ids[once], numbers[of_row[once]])
        if lengths.max() == 1:
            return
        sizes = np.bincount(of_row[once])
        set_starts = np.cumsum(sizes) - sizes
        # The number of a set's contents stands where a row's number would: it is what the sum needs.
        self._equal_sets.add(row_keys(ids[once], set_starts, ordered=False), sizes)
        if self._format == "triplets":
            alike = ids[starts] == ids[starts + 1]
            place = np.arange(len(ids)) - starts[of_row]
            hard = (place > 1) & ((ids == ids[starts][of_row]) | (ids == ids[starts + 1][of_row]))
            self._negative_is_alike.add(numbers[np.unique(of_row[hard])])
        else:
            alike = sizes < lengths
        self._same_inputs.add(numbers[alike])

    def _duplicates(self) -> tuple[Duplicates, float]:
        """What occurs more than once, and how many pairs of rows share an input."""
        texts, rows = _Repetitions(), _Repetitions()
        different = repeated = again = 0
        sharing = 0.0
        for part in self._groups(self.contents):
            different += len(part)
            repeated += int((part["count"] > 1).sum())
            sharing += pairs_of(part["count"])
            texts.add(part)
        for part in self._groups(self._equal_rows):
            again += int((part["count"] - 1).sum())
            rows.add(part)
        for part in self._groups(self._equal_sets):
            sizes = part["first"]
            for size in np.unique(sizes).tolist():
                sharing -= (size - 1) * pairs_of(part["count"][sizes == size])
        duplicates = Duplicates(
            rows=again,
            first_rows=rows.first,
            different_texts=different,
            repeated_texts=repeated,
            first_texts=texts.first,
        )
        return duplicates, sharing

    def _groups(self, occurrences: Occurrences) -> Iterator[Records]:
        for part in occurrences.groups():
            if self._should_stop is not None and self._should_stop():
                raise StoppedError
            yield part

    def _found_conflicts(self) -> Conflicts:
        count, found = self._conflicts.found()
        first = [Conflict(rows=each.rows, labels=self._label_names(each.rows, each.label_ids)) for each in found]
        return Conflicts(count=count, first=first)

    def _label_names(self, rows: tuple[int, int], ids: tuple[int, int]) -> tuple[str, str]:
        return self._labels.name(ids[0], rows[0]), self._labels.name(ids[1], rows[1])


class _Chunk:
    """Rows that wait to be looked at together."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, Row]] = []
        self._characters = 0

    def add(self, number: int, row: Row) -> bool:
        """Take another row. Whether it is enough."""
        self.rows.append((number, row))
        for each in row.inputs:
            self._characters += len(each)
        return len(self.rows) >= _CHUNK_ROWS or self._characters >= _CHUNK_CHARACTERS


class _FirstRows:
    """Counts rows, and keeps the first numbers."""

    def __init__(self) -> None:
        self._count = 0
        self._first: list[int] = []

    def add(self, numbers: Integers) -> None:
        self._count += len(numbers)
        self._first += numbers[: MAX_LISTED_ROWS - len(self._first)].tolist()

    def rows(self) -> Rows:
        return Rows(count=self._count, first=self._first)


class _Repetitions:
    """The first of what occurs again, by the row that it occurs in again."""

    def __init__(self) -> None:
        self.first: list[SameAs] = []

    def add(self, occurrences: Records) -> None:
        again = occurrences[occurrences["count"] > 1]
        earliest = again[np.argsort(again["second"], kind="stable")[:MAX_LISTED_ROWS]]
        self.first += [SameAs(row=int(each["second"]), same_as=int(each["first"])) for each in earliest]
        self.first = sorted(self.first, key=lambda each: (each.row, each.same_as))[:MAX_LISTED_ROWS]


class _VectorFacts:
    """Dimension and norms of vectors."""

    def __init__(self) -> None:
        self._dimension = 0
        self._smallest, self._largest = np.inf, 0.0
        self._norms: Reservoir[float] = Reservoir(SAMPLE)

    def add(self, vectors: npt.NDArray[np.float64]) -> None:
        """(n, dimension)."""
        norms = np.linalg.norm(vectors, axis=1)
        self._dimension = vectors.shape[1]
        self._smallest, self._largest = min(self._smallest, norms.min()), max(self._largest, norms.max())
        self._norms.add(norms.tolist())

    def vectors(self) -> Vectors | None:
        if not self._dimension:
            return None
        return Vectors(
            dimension=self._dimension,
            smallest_norm=float(self._smallest),
            median_norm=float(np.median(self._norms.kept)),
            largest_norm=float(self._largest),
        )


class _ScoreFacts:
    """Between which numbers scores lie."""

    def __init__(self) -> None:
        self._ends = np.zeros(0)  # the smallest and the largest so far, once there are any
        self._more_than_two = False
        self._sample: Reservoir[float] = Reservoir(SAMPLE)

    def add(self, scores: npt.NDArray[np.float64]) -> None:
        """(n,)."""
        different = np.unique(np.append(scores, self._ends))
        self._ends = different[[0, -1]]
        self._more_than_two |= len(different) > 2
        self._sample.add(scores.tolist())

    def scores(self) -> Scores | None:
        if not self._sample.kept:
            return None
        smallest, largest = self._ends.tolist()
        return Scores(
            smallest=smallest,
            median=float(np.median(self._sample.kept)),
            largest=largest,
            binary=smallest < largest and not self._more_than_two,
        )


def profile(rows: Iterator[tuple[int, Row]], measure: Measure | None = None, *, scratch: Path | None = None) -> Profile:
    """The profile of numbered rows. Raises OSError, and whatever `rows` raises."""
    with Profiler(measure, scratch=scratch) as profiler:
        for number, row in rows:
            profiler.add(number, row)
        return profiler.profile()


def _once_a_row(ids: Integers, of_row: Integers) -> Integers:
    """(n,) indices of the inputs, sorted by row and id, without those that their row holds already."""
    order: Integers = np.lexsort((ids, of_row))
    same = (of_row[order][1:] == of_row[order][:-1]) & (ids[order][1:] == ids[order][:-1])
    kept: Integers = order[np.concatenate([np.ones(min(1, len(ids)), dtype=bool), ~same])]
    return kept
