"""What an encoder is asked on the rows of a split: which texts look for which.

    pairs, triplets, views   each row's first text looks for its others, among the answers of all rows, their hard
                             negatives, and answers out of the first training file that make the search harder
    labels                   each text looks for those of its label, among all others of the split

Texts with equal contents are one. A text never finds itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.data.prepared import Prepared
from workers.evaluation.groups import Indices, groups_of, items_of
from workers.training.units import label_numbers

#: Rows of a split that are asked about; of a larger one a sample. Both encoders embed two texts or more for each.
MOST_ROWS = 5_000
#: Of labelled texts, of which each pair of one label counts.
MOST_LABELLED_ROWS = 2_000
#: Answers are searched for among so many texts at least, as far as the training file has them: among fewer, chance
#: finds too much.
FEWEST_DOCUMENTS = 2_000


class NoQuestionsError(ValueError):
    """The rows hold nothing that could be asked; the message says what is missing."""


@dataclass(frozen=True, eq=False)
class Questions:
    """n queries, m documents, p pairs of a query and a document that is right for it, by query.

    Items are indices into the datasets that texts are embedded from. A query may be a document too: then it is
    left out of its own search.
    """

    queries: Indices  # (n,) items of the split
    documents: Indices  # (m,) items of the split
    distractors: Indices  # (k,) items of the training file, behind the documents
    asking: Indices  # (p,) numbers of queries, ascending
    answers: Indices  # (p,) numbers of documents
    itself: Indices  # (n,) the document that is the query's own text, or −1
    groups: Indices  # (n,) queries of one group depend on each other
    rows: Indices  # (n,) the row of the split that a query stands in
    labels: npt.NDArray[np.int32] | None  # (m,) of documents that are labelled texts


def questions_of(split: Prepared, training: Prepared, *, seed: int) -> Questions:
    """The questions of a split's rows, or of a sample where they are too many. Raises NoQuestionsError."""
    rng = np.random.default_rng([seed, split.row_count])
    rows = split.rows.astype(np.int64)
    most = MOST_ROWS if split.labels is None else MOST_LABELLED_ROWS
    if len(rows) > most:
        rows = np.sort(rng.choice(rows, most, replace=False))
    if split.labels is not None:
        return _of_labels(split, rows)
    if split.format in ("texts", "vectors", "scored_pairs"):
        raise NoQuestionsError(f"rows of {split.format} do not say which of them are alike")
    return _of_rows(split, training, rows, rng)


def _of_rows(split: Prepared, training: Prepared, rows: Indices, rng: np.random.Generator) -> Questions:
    items, counts = items_of(split, rows)
    owners = np.repeat(np.arange(len(rows)), counts)
    place = np.arange(len(items)) - np.repeat(np.cumsum(counts) - counts, counts)
    contents = split.contents[items]
    is_answer = (place == 1) if split.format == "triplets" else (place > 0)

    asked, firsts, query_of_row = np.unique(contents[place == 0], return_index=True, return_inverse=True)
    found, at, document_of_item = np.unique(contents[place > 0], return_index=True, return_inverse=True)
    pairs = np.stack([query_of_row[owners[is_answer]], document_of_item[is_answer[place > 0]]], axis=1)
    pairs = np.unique(pairs[asked[pairs[:, 0]] != found[pairs[:, 1]]], axis=0)
    if not len(pairs):
        raise NoQuestionsError("no row has an answer that differs from its question")
    answered = np.unique(pairs[:, 0])
    return Questions(
        queries=items[place == 0][firsts][answered],
        documents=items[place > 0][at],
        distractors=_distractors(training, np.concatenate([asked, found]), FEWEST_DOCUMENTS - len(found), rng),
        asking=np.searchsorted(answered, pairs[:, 0]),
        answers=pairs[:, 1],
        itself=_places(asked[answered], found),
        groups=groups_of(split, rows)[firsts][answered],
        rows=rows[firsts][answered],
        labels=None,
    )


def _of_labels(split: Prepared, rows: Indices) -> Questions:
    _, first = np.unique(split.contents[rows], return_index=True)
    rows = rows[np.sort(first)]
    labels = label_numbers(split)[rows]
    same = labels[:, None] == labels
    np.fill_diagonal(same, val=False)
    # A text that is alone with its label is found by nobody and finds nothing.
    asks = np.flatnonzero(same.any(axis=1))
    if not len(asks) or len(np.unique(labels)) == 1:
        raise NoQuestionsError("labelled texts need two labels, one of them with two texts")
    asking, answers = np.nonzero(same[asks])
    # A row of a labelled file has one item, so both have one number.
    return Questions(
        queries=rows[asks],
        documents=rows,
        distractors=rows[:0],
        asking=asking,
        answers=answers,
        itself=asks,
        groups=np.arange(len(asks)),
        rows=rows[asks],
        labels=labels,
    )


def _distractors(training: Prepared, known: Indices, wanted: int, rng: np.random.Generator) -> Indices:
    """Items of answers in the training file, each content once and none that the split knows; at most `wanted`."""
    if wanted <= 0:
        return np.zeros(0, dtype=np.int64)
    rows = training.rows
    # Twice as many, since some repeat one another.
    drawn = np.sort(rng.choice(rows, min(len(rows), 2 * wanted), replace=False))
    items, counts = items_of(training, drawn.astype(np.int64))
    items = np.delete(items, np.cumsum(counts) - counts)
    contents, first = np.unique(training.contents[items], return_index=True)
    chosen = items[first[~np.isin(contents, known)]]
    return np.sort(rng.permutation(chosen)[:wanted])


def _places(wanted: npt.NDArray[np.int64], ascending: npt.NDArray[np.int64]) -> Indices:
    """Where each stands among the others, or −1."""
    at = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    places: Indices = np.where(ascending[at] == wanted, at, -1)
    return places
