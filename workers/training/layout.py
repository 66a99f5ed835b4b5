"""Rows sorted by class: where the negatives' tiles and the pairs' blocks of a matrix of logits lie.

Letters: R rows that ask (anchors), C columns they are compared with, D their width, T the side of a tile,
         B classes of one block, A and P rows and columns of each class in it.

Classes come by size, and rows and columns by class in that same order. The matrix then reads like this, for classes
a of one row and one column, b of two rows and two columns, and c of three and three:

        a b b c c c
    a   +                Rows and columns of one class cross in a rectangle (+), and the rectangles step down a
    b     + +            staircase; where rows are compared with themselves they lie on the diagonal. In there are
    b     + +            all pairs, outside it all negatives.
    c         + + +
    c         + + +      Classes of one size are a `Run`: their rectangles are equal and equally spaced, so that one
    c         + + +      strided view is all of them.

Pairs are few. They are taken as `Block`s: the rectangles of many classes of a run as one batch of small matrices, or,
of a class with more than T rows or columns, a piece of at most T × T.

Negatives are many. They are taken as `Tile`s: a `Span` of rows by a span of columns, T of each at most. Spans end
where classes end, so that a tile holds whole rectangles, to be blanked out; only a class of more than T rows is
cut, and its spans hold nothing else. Of a symmetric matrix the tiles on and above the diagonal are enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from workers.training.comparison import Comparison


class Run(NamedTuple):
    """Classes of equal size, side by side."""

    classes: int
    rows: int  # of each class
    columns: int
    first_class: int
    first_row: int
    first_column: int


class Span(NamedTuple):
    """Rows (or columns) of whole classes, T at most; of a class that is larger, T at a time."""

    at: slice
    first_class: int
    last_class: int
    doubtful: bool = False  # some of them have a content that occurs in two classes


class Tile(NamedTuple):
    """Logits of a span of rows with a span of columns."""

    rows: Span
    columns: Span
    on_diagonal: bool  # of a symmetric matrix: it holds both its halves


class Block(NamedTuple):
    """Logits (B, A, P) of rows with columns of their own class."""

    rows: slice
    columns: slice
    classes: int
    diagonal: bool  # row k of a class is column k of it
    row_positives: int  # |P(i)| of each row
    column_positives: int  # and of each column, where columns ask

    def of_rows(self, values: Tensor) -> Tensor:
        """(B, A, D) of (R, D), a view."""
        return values[self.rows].view(self.classes, -1, values.shape[1])

    def of_columns(self, values: Tensor) -> Tensor:
        return values[self.columns].view(self.classes, -1, values.shape[1])


@dataclass(frozen=True)
class Layout:
    """The order of rows and columns, and the runs they make."""

    row_order: Tensor  # (R,)
    column_order: Tensor  # (C,)
    runs: list[Run]
    own: bool  # each row is among the columns
    symmetric: bool  # the columns are the rows

    @staticmethod
    def of(comparison: Comparison) -> Layout:
        """Classes by size, rows by class; a row and the column that is itself at equal places of their class."""
        rows, columns, n = comparison.row_classes, comparison.column_classes, comparison.classes
        row_counts = torch.bincount(rows, minlength=n)
        column_counts = row_counts if comparison.same else torch.bincount(columns, minlength=n)
        base = len(columns) + 1
        sizes, by_size = torch.sort(row_counts * base + column_counts)
        rank = torch.empty_like(by_size)
        rank[by_size] = torch.arange(n, device=rank.device)
        row_order = torch.argsort(rank[rows], stable=True)
        column_order = row_order if comparison.same else _column_order(comparison, rank)
        return Layout(
            row_order, column_order, _runs(sizes, base), own=comparison.own is not None, symmetric=comparison.same
        )

    def tiles(self, side: int, row_contents: Tensor | None, column_contents: Tensor | None) -> list[Tile]:
        """All tiles of T = `side` that hold a negative; of a symmetric matrix those on and above the diagonal.

        Contents are those of the comparison, in order.
        """
        rows = _marked(_spans([(run.classes, run.rows) for run in self.runs], side), row_contents)
        if self.symmetric:
            columns = rows
        else:
            columns = _marked(_spans([(run.classes, run.columns) for run in self.runs], side), column_contents)
        return list(_tiles(rows, columns, symmetric=self.symmetric))

    def blocks(self, side: int) -> Iterator[Block]:
        """All pairs, in blocks of about T² logits, T = `side`."""
        for run in self.runs:
            if run.rows and run.columns > self.own:
                whole = max(run.rows, run.columns) <= side
                yield from (_stacked if whole else _pieces)(run, side, own=self.own)


def _column_order(comparison: Comparison, rank: Tensor) -> Tensor:
    rows, columns = comparison.row_classes, comparison.column_classes
    place = torch.full_like(columns, len(rows))
    if comparison.own is not None:
        place[comparison.own] = torch.arange(len(rows), device=place.device)
    return torch.argsort(rank[columns] * (len(rows) + 1) + place)


def _runs(sizes: Tensor, base: int) -> list[Run]:
    """Runs of equal numbers rows·base + columns. The one transfer that the layout waits for."""
    values, counts = torch.unique_consecutive(sizes, return_counts=True)
    runs, first_class, first_row, first_column = [], 0, 0, 0
    for size, classes in torch.stack([values, counts], dim=1).tolist():
        rows, columns = divmod(size, base)
        runs.append(Run(classes, rows, columns, first_class, first_row, first_column))
        first_class += classes
        first_row += classes * rows
        first_column += classes * columns
    return runs


def _spans(sizes: list[tuple[int, int]], tile: int) -> Iterator[Span]:
    """Cut rows at edges of classes; sizes: (how many classes, rows of each) in order."""
    start = stop = first = current = 0  # rows start:stop are of classes first:current

    for classes, size in sizes:
        end = current + classes
        while size and current < end:
            room = (start + tile - stop) // size
            if stop > start and not room:
                yield Span(slice(start, stop), first, current - 1)
                start = stop
            elif size > tile:
                for at in range(stop, stop + size, tile):
                    yield Span(slice(at, min(at + tile, stop + size)), current, current)
                start = stop = stop + size
                current += 1
            else:
                if start == stop:
                    first = current
                taken = min(room, end - current)
                current += taken
                stop += taken * size
        current = end
    if stop > start:
        yield Span(slice(start, stop), first, current - 1)


def _marked(spans: Iterable[Span], contents: Tensor | None) -> list[Span]:
    """Say which spans hold contents that occur in two classes; contents are negative elsewhere."""
    listed = list(spans)
    if contents is None or not listed:
        return listed
    doubtful = torch.stack([contents[span.at].amax() >= 0 for span in listed]).tolist()
    return [span._replace(doubtful=mark) for span, mark in zip(listed, doubtful, strict=True)]


def _tiles(rows: list[Span], columns: list[Span], *, symmetric: bool) -> Iterator[Tile]:
    for number, row in enumerate(rows):
        for column in columns[number if symmetric else 0 :]:
            if not row.first_class == row.last_class == column.first_class == column.last_class:
                yield Tile(row, column, on_diagonal=symmetric and row.at == column.at)


def _stacked(run: Run, tile: int, *, own: bool) -> Iterator[Block]:
    """Many whole classes of a run in one block."""
    step = max(1, tile * tile // (run.rows * run.columns))
    for first in range(0, run.classes, step):
        classes = min(step, run.classes - first)
        row, column = run.first_row + first * run.rows, run.first_column + first * run.columns
        rows = slice(row, row + classes * run.rows)
        columns = slice(column, column + classes * run.columns)
        yield Block(rows, columns, classes, own, run.columns - own, run.rows)


def _pieces(run: Run, tile: int, *, own: bool) -> Iterator[Block]:
    """Each class of a run in pieces of at most T × T; those as far down as to the right hold its diagonal."""
    for number in range(run.classes):
        row_start, column_start = run.first_row + number * run.rows, run.first_column + number * run.columns
        for i in range(0, run.rows, tile):
            rows = slice(row_start + i, row_start + min(i + tile, run.rows))
            for j in range(0, run.columns, tile):
                columns = slice(column_start + j, column_start + min(j + tile, run.columns))
                yield Block(rows, columns, 1, own and i == j, run.columns - own, run.rows)
