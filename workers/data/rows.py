"""From a record, as a file holds it, to rows: which fields, of which types, within which bounds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from api_schemas.files import DataFormat
from workers.data.formats import NUMBERED, Fields, ReadOptions, numbered_negatives, recognise, shown, unfit
from workers.data.json_lines import is_too_deep, kind
from workers.data.row import Row, RowRefusedError
from workers.data.scores import score_of

#: The most positives, negatives or views of one row.
MAX_TEXTS = 64
MAX_DIMENSION = 16384
#: Vectors are kept and computed with in float32: its largest number, and the smallest of full precision.
_LARGEST, _SMALLEST = 3.4028234e38, 1.1754944e-38
_MOST_REMEMBERED = 100
_LONGEST_REMEMBERED = 1000
#: Refusals that say which name may have been meant, unless they are remembered. Those after are brief.
_MOST_EXPLAINED = 1000


class RowMaker:
    """Makes rows of a file's records. The first record that can be used decides what all of them are."""

    def __init__(self, options: ReadOptions, *, columns: Sequence[str] | None = None, cells: bool = False) -> None:
        """`columns` are those of a table, which all its records have.

        With `cells`, every value is a string, in which a list is written as JSON.

        Raises RowRefusedError if the columns make no row.
        """
        self._options = options
        self._cells = cells
        self._dimension: int | None = None
        # What is wrong with records of these fields. In a file without a good row it is asked for every row.
        self._refusals: dict[tuple[str, ...], RowRefusedError] = {}
        self._explained = 0
        self._all_alike = columns is not None
        self.fields: Fields | None = None if columns is None else recognise(columns, options)

    @property
    def format(self) -> DataFormat | None:
        """What the rows are, once a record has told."""
        return None if self.fields is None else self.fields.format

    def rows(self, record: Mapping[str, Any]) -> list[Row]:
        """The rows of a record: one for each of its positives, one if it has no positives. Raises RowRefusedError."""
        fields = self.fields
        if fields is None or not (self._all_alike or fields.fit(record)):
            fields = self._recognised(record)
        rows = _MAKERS[fields.format](self, record, fields)
        if self.fields is None:
            self.fields = fields
            self._refusals.clear()
        return rows

    def _recognised(self, record: Mapping[str, Any]) -> Fields:
        names = tuple(record)
        known = self._refusals.get(names)
        if known is not None:
            raise RowRefusedError(known.code, known.message, known.field)
        briefly = self._explained >= _MOST_EXPLAINED
        try:
            if self.fields is not None:
                raise unfit(record, self.fields, self._options, briefly=briefly)
            return recognise(names, self._options, briefly=briefly)
        except RowRefusedError as refusal:
            self._explained += 1
            if len(self._refusals) < _MOST_REMEMBERED and sum(map(len, names)) < _LONGEST_REMEMBERED:
                # A copy: what is raised holds on to the record by its traceback.
                self._refusals[names] = RowRefusedError(refusal.code, refusal.message, refusal.field)
            raise

    def _pairs(self, record: Mapping[str, Any], fields: Fields) -> list[Row]:
        anchor, positive = fields.names
        text = text_of(record[anchor], anchor)
        if type(record[positive]) is str and not self._cells:
            return [Row("pairs", (text, text_of(record[positive], positive)))]
        return [Row("pairs", (text, other)) for other in self._texts(record[positive], positive)]

    def _scored_pairs(self, record: Mapping[str, Any], fields: Fields) -> list[Row]:
        *texts, score = fields.names
        told = score_of(record[score], score, written=self._cells)
        return [Row("scored_pairs", tuple(text_of(record[name], name) for name in texts), score=told)]

    def _triplets(self, record: Mapping[str, Any], fields: Fields) -> list[Row]:
        negatives = self._negatives(record, fields.negative or NUMBERED)
        return [Row("triplets", (*pair.inputs, *negatives)) for pair in self._pairs(record, fields)]

    def _negatives(self, record: Mapping[str, Any], name: str) -> list[str]:
        if name != NUMBERED:
            return self._texts(record[name], name)
        # A table has as many columns as its longest row needs.
        filled = [name for name in numbered_negatives(record) if record[name] not in (None, "")]
        _refuse_too_many(filled, NUMBERED)
        return [text_of(record[name], name) for name in filled or [NUMBERED]]

    def _labels(self, record: Mapping[str, Any], fields: Fields) -> list[Row]:
        text, label = fields.names
        return [Row("labels", (text_of(record[text], text),), label_of(record[label], label))]

    def _views(self, record: Mapping[str, Any], fields: Fields) -> list[Row]:
        [name] = fields.names
        views = self._texts(record[name], name)
        if len(views) < 2:
            message = f"{shown(name)} must be a list of at least two texts. Add a view, or name it 'text'."
            raise RowRefusedError("row_too_few_views", message, name)
        return [Row("views", tuple(views))]

    def _plain(self, record: Mapping[str, Any], fields: Fields) -> list[Row]:
        [name] = fields.names
        return [Row("texts", (text_of(record[name], name),))]

    def _vectors(self, record: Mapping[str, Any], fields: Fields) -> list[Row]:
        vector, label = fields.names
        told = label_of(record[label], label)
        return [Row("vectors", self._of_one_dimension(record, vector), told)]

    def _vector_pairs(self, record: Mapping[str, Any], fields: Fields) -> list[Row]:
        return [Row("vector_pairs", self._of_one_dimension(record, *fields.names))]

    def _of_one_dimension(self, record: Mapping[str, Any], *names: str) -> tuple[tuple[float, ...], ...]:
        vectors = []
        dimension = self._dimension
        for name in names:
            vector = _vector(record[name], name, dimension)
            dimension = len(vector)
            vectors.append(vector)
        self._dimension = dimension
        return tuple(vectors)

    def _texts(self, value: object, name: str) -> list[str]:
        """One text or a list of them, each sound."""
        if self._cells and isinstance(value, str):
            value = _list_in_cell(value)
        if not isinstance(value, list):
            return [text_of(value, name, allowed="a string or a list of strings")]
        if not value:
            raise RowRefusedError("row_empty_text", f"{shown(name)} is an empty list. Fill it or remove the row.", name)
        _refuse_too_many(value, name)
        return [text_of(text, name, allowed="a list of strings only") for text in value]


_MAKERS: Mapping[DataFormat, Callable[[RowMaker, Mapping[str, Any], Fields], list[Row]]] = {
    "pairs": RowMaker._pairs,
    "scored_pairs": RowMaker._scored_pairs,
    "triplets": RowMaker._triplets,
    "labels": RowMaker._labels,
    "views": RowMaker._views,
    "texts": RowMaker._plain,
    "vectors": RowMaker._vectors,
    "vector_pairs": RowMaker._vector_pairs,
}


def text_of(value: object, name: str, *, allowed: str = "a string") -> str:
    """A value as the text that it must be. Raises RowRefusedError."""
    if type(value) is not str:
        remedy = "Write one row for each." if isinstance(value, list) else "Change it."
        message = f"{shown(name)} must be {allowed}, not {kind(value)}. {remedy}"
        raise RowRefusedError("row_invalid_type", message, name)
    if not value or value.isspace():
        raise RowRefusedError("row_empty_text", f"{shown(name)} is empty. Fill it or remove the row.", name)
    if not _is_sound(value):
        message = f"{shown(name)} holds NUL or half of a surrogate pair (such as \\u0000 or \\ud800). Remove it."
        raise RowRefusedError("invalid_unicode", message, name)
    return value


def label_of(value: object, name: str) -> str:
    """A string, or an integer as its digits. Raises RowRefusedError."""
    if type(value) is not int:
        return text_of(value, name, allowed="a string or an integer")
    try:
        return str(value)
    except ValueError:  # of more digits than Python writes out
        message = f"{shown(name)} has too many digits. Write it as a string."
        raise RowRefusedError("row_invalid_type", message, name) from None


def _is_sound(text: str) -> bool:
    """Whether text can be stored and tokenized: no NUL, no lone surrogates."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refuse_too_many(values: Sequence[object], name: str) -> None:
    if len(values) > MAX_TEXTS:
        message = f"{shown(name)} holds {len(values)} texts; at most {MAX_TEXTS} fit. Keep the best of them."
        raise RowRefusedError("row_too_many_texts", message, name)


def _vector(value: object, name: str, dimension: int | None) -> tuple[float, ...]:
    """A vector of the given dimension, of any if None, that is still one in float32."""
    if isinstance(value, str):
        value = _list_in_cell(value)
    if not isinstance(value, list) or not set(map(type, value)) <= {float, int}:
        found = "a list with something else in it" if isinstance(value, list) else kind(value)
        message = f"{shown(name)} must be a list of numbers, not {found}. Change it."
        raise RowRefusedError("row_invalid_type", message, name)
    wanted = dimension if dimension is not None else len(value)
    if len(value) != wanted or not 2 <= wanted <= MAX_DIMENSION:
        expected = f"{dimension}, as the vectors before" if dimension is not None else f"2 to {MAX_DIMENSION}"
        message = f"{shown(name)} has {len(value)} numbers instead of {expected}. Give all vectors one dimension."
        raise RowRefusedError("vector_wrong_size", message, name)
    try:
        vector = tuple(map(float, value))
    except OverflowError:
        vector = (math.inf,)
    largest = max(map(abs, vector))
    if not largest <= _LARGEST or any(map(math.isnan, vector)):
        message = f"{shown(name)} holds NaN or infinity, or a number beyond single precision. Remove the row."
        raise RowRefusedError("not_finite", message, name)
    if largest and largest < _SMALLEST:
        message = (
            f"{shown(name)} is all zeros in single precision: its largest number is {largest:g}. Scale all vectors up."
        )
        raise RowRefusedError("vector_is_zero", message, name)
    if not largest:
        message = f"{shown(name)} is all zeros, which point nowhere: no cosine is defined. Remove the row."
        raise RowRefusedError("vector_is_zero", message, name)
    return vector


def _list_in_cell(cell: str) -> object:
    """The list that a table's cell writes as JSON, or the cell itself: a text may begin with a bracket."""
    if not cell.startswith("[") or is_too_deep(cell):
        return cell
    try:
        value = json.loads(cell)
    except ValueError:
        return cell
    return value if isinstance(value, list) else cell


def bytes_of(record: Mapping[str, Any]) -> int:
    """How long a record is that never was a line, about as long as the line that it could have been."""
    return sum(_bytes_of(value) for value in record.values())


def _bytes_of(value: object) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    return sum(map(_bytes_of, value)) if isinstance(value, list) else 8
