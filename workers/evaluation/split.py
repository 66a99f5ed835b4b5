"""The frozen split of a job: which rows are asked about, and which are trained on.

It is the job's validation file, or carved out of the first training file by whole groups (see `groups`), so that no
text is in both; of further training files the rows that hold such a text are left out. The same files, share and seed
give the same split; its id is a hash of what it holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from workers.data.prepared import Prepared
from workers.evaluation.groups import groups_of, items_of
from workers.training.units import label_numbers, numbered

#: Texts of one label that stay with training, and that are held out if any are: one to ask and one to find.
_PAIR = 2

Rows = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Split:
    """`training` is what the samplers get, file by file, and `evaluation` what nothing is learned from."""

    training: Sequence[Prepared]
    evaluation: Prepared
    source: Literal["validation_file", "training_file"]
    id: str


def given(training: Sequence[Prepared], validation: Prepared) -> Split:
    """The split of a job with a validation file."""
    return Split(training, validation, "validation_file", split_id(validation))


def carved(training: Sequence[Prepared], share: float, seed: int) -> Split | None:
    """About this share of the first file's rows, in whole groups.

    None if no group is small enough, or too few rows of some file are left.

    Of labelled texts each label gives about the share, and keeps what makes it trainable; a label too small for
    both gives nothing.
    """
    if not share:
        return None
    data, *others = training
    rng = np.random.default_rng([seed, len(data)])
    rows = data.rows
    groups = groups_of(data, rows)
    held_out = _of_labels(data, groups, share, rng) if data.labels is not None else _of_pairs(groups, share, rng)
    if np.count_nonzero(held_out) < _PAIR:
        return None
    numbers = numbered(len(data))
    evaluation = data.narrowed(numbers[rows[held_out]])
    rest = [data.narrowed(numbers[rows[~held_out]]), *(_without(each, evaluation) for each in others)]
    if min(each.row_count for each in rest) < _PAIR:
        return None
    return Split(rest, evaluation, "training_file", split_id(evaluation))


def split_id(data: Prepared) -> str:
    """The same for the same rows, in whatever order and file they stand."""
    labels, scores = data.labels, data.scores
    rows = sorted(
        data.contents[data.row_starts[row] : data.row_starts[row + 1]].astype("<i8").tobytes()
        + (data.label_names[labels[row]].encode() if labels is not None else b"")
        + (scores[row].astype("<f8").tobytes() if scores is not None else b"")
        for row in data.rows
    )
    digest = hashlib.sha256(data.format.encode())
    for each in rows:
        digest.update(len(each).to_bytes(4, "little") + each)
    return f"split-{digest.hexdigest()[:32]}"


def _without(data: Prepared, evaluation: Prepared) -> Prepared:
    """The rows that hold nothing of the evaluation's."""
    known = np.unique(evaluation.contents[items_of(evaluation, evaluation.rows)[0]])
    held = np.logical_or.reduceat(np.isin(data.contents, known), data.row_starts[:-1])
    kept = data.rows[~held[data.rows]]
    return data if len(kept) == data.row_count else data.narrowed(kept)


def _of_pairs(groups: npt.NDArray[np.int64], share: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Groups in random order, as long as they fit into the share of the rows; (rows,)."""
    sizes = np.bincount(groups)
    order = rng.permutation(len(sizes))
    room = round(share * len(groups))
    # One group too large must not end the search: what comes after it may still fit.
    order = order[sizes[order] <= room]
    taken = order[np.cumsum(sizes[order]) <= room]
    return np.isin(groups, taken)


def _of_labels(
    data: Prepared, groups: npt.NDArray[np.int64], share: float, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Of each label its share of the groups: none, or so many that both sides have pairs of it; (rows,)."""
    _, first = np.unique(groups, return_index=True)
    labels = label_numbers(data)[data.rows][first]  # of each group, by its first row
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    wanted = np.floor(share * counts + rng.random(len(counts))).astype(np.int64)
    # A share below two is nothing or two, as likely as keeps the share.
    small = wanted < _PAIR
    wanted[small] = np.where(rng.random(len(counts)) < share * counts / _PAIR, _PAIR, 0)[small]
    wanted = np.minimum(wanted, np.maximum(counts - _PAIR, 0))
    wanted[wanted < _PAIR] = 0
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    taken = order[place < wanted[labels[order]]]
    if len(np.unique(labels[taken])) < _PAIR:
        taken = taken[:0]
    return np.isin(groups, taken)
