"""Contrastive losses of a matrix of logits that is never held: its tiles are made, used and overwritten.

Letters: R rows that ask (anchors), C columns they are compared with, D their width, T the side of a tile,
         B classes of one block, A and P rows and columns of each class in it.
         x (R, D) and y (C, D): s_ij = x_i·y_j are the logits, so |x_i||y_j| = 1/τ for directed rows.
         P(i) columns of i's class, i itself not counted; N(i) columns of other classes, without those known
         to be false negatives; w_i the weight of each pair (i, p).

The loss is Σ_i w_i Σ_{p∈P(i)} ℓ(i, p), with L_i = log Σ_{n∈N(i)} exp(s_in) and

    NT-Xent   ℓ(i, p) = softplus(L_i − s_ip)
    SupCon    ℓ(i, p) = Λ_i − s_ip,  Λ_i = log Σ_{j∈N(i)∪P(i)} exp(s_ij)

Both have a gradient of one form, with a push u_i for each anchor and a pull v_ip for each pair:

    ∂/∂s_in = u_i exp(s_in)    NT-Xent  u_i = w_i Σ_p 1 / (exp(L_i) + exp(s_ip))
                               SupCon   u_i = w_i |P(i)| / exp(Λ_i)
    ∂/∂s_ip = −v_ip            NT-Xent  v_ip = w_i σ(L_i − s_ip)
                               SupCon   v_ip = w_i (1 − |P(i)| exp(s_ip − Λ_i))

So between the tiles and the loss there are only vectors: a first walk over the tiles finds L, the pairs (few, and
side by side once rows are sorted by class) give the loss, u and v, and a second walk adds (∂/∂s) y and (∂/∂s)ᵀ x
to the gradients. Both walks see negatives only. When rows are compared with themselves s is symmetric: the tiles on
and above the diagonal serve both their rows and their columns, for about 4·R²·D operations in all; autograd over the
whole matrix takes 6·R²·D. The temperature's gradient needs nothing of its own: it is a factor of x and y.

Sources: the derivative is elementary; the walk with running log-sums is that of Milakov and Gimelshein 2018, "Online
normalizer calculation for softmax", Rabe and Staats 2021, "Self-attention does not need O(n²) memory", and Dao et
al. 2022, "FlashAttention". The losses: see `losses.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Literal["ntxent", "supcon"]

# Tiles that the second walk finds ready instead of making them again: a quarter of the work up to 4096 rows,
# nothing to speak of beyond. A constant, so memory stays O((R + C)·D).
KEPT_BYTES = 36 * 2**20


@dataclass(frozen=True)
class Comparison:
    """Who is compared with whom. Classes and contents are numbered from 0; equal numbers are equal things."""

    objective: Objective
    classes: int  # how many
    row_classes: Tensor  # (R,)
    column_classes: Tensor  # (C,)
    row_weights: Tensor  # (R,) of each pair (i, p)
    column_weights: Tensor | None = None  # (C,) of each pair (p, i), where columns ask too
    row_contents: Tensor | None = None  # (R,) equal contents are never negatives
    column_contents: Tensor | None = None  # (C,)
    own: Tensor | None = None  # (R,) which column is the row itself, and so none of its positives
    same: bool = False  # the columns are the rows: `own` is 0, 1, …, and y is x


class Hits(NamedTuple):
    """Whether an anchor's nearest positive is nearer than its nearest negative; false without a positive."""

    rows: Tensor  # (R,) bool
    columns: Tensor | None  # (C,) bool, where columns ask too


def tiled_loss(
    x: Tensor,
    y: Tensor,
    comparison: Comparison,
    *,
    largest: float,
    tile_size: int | None = None,
    with_hits: bool = False,
) -> tuple[Tensor, Hits | None]:
    """The loss, a scalar with its gradient, in O((R + C)·D + T²) memory, and on demand which anchors hit.

    x (R, D), y (C, D) of one dtype, float32 or float64; y is ignored where the columns are the rows.
    `largest` bounds all |s_ij|. The gradient is computed on the way if x or y asks for one; it has none itself.
    """
    found: list[Hits] | None = [] if with_hits else None
    walked = None if comparison.same else y
    value: Tensor = _Tiled.apply(x, walked, comparison, largest, tile_size, found)  # type: ignore[no-untyped-call]
    return value, found[0] if found else None


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        comparison: Comparison,
        largest: float,
        tile: int | None,
        found: list[Hits] | None,
    ) -> Tensor:
        gradient = any(ctx.needs_input_grad[:2])
        walk = _Walk(x, y, comparison, largest, tile, gradient=gradient, hits=found is not None)
        value = walk.run()
        if gradient:
            inputs = (x,) if y is None else (x, y)
            ctx.save_for_backward(*inputs, *walk.gradients())
        if found is not None:
            found.append(walk.hits())
        return value

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, ...]:
        (factor,), saved = outputs, ctx.saved_tensors
        inputs, gradients = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        scaled = [_ScaledGradient.apply(gradient, factor, *inputs) for gradient in gradients]  # type: ignore[no-untyped-call]
        return (*scaled, *[None] * (6 - len(scaled)))


class _ScaledGradient(torch.autograd.Function):
    """gradient × factor, a function of the inputs too, which says so when it is asked for a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, factor: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ARG004
        return gradient * factor

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:  # noqa: ARG004
        raise RuntimeError(
            "The tiled loss has no second derivative: its gradient is computed with the value, and the tiles "
            'are gone. Use memory="dense" to differentiate twice.'
        )


# Layout: rows sorted by class, so that positives lie in blocks beside the diagonal


class _Run(NamedTuple):
    """Classes of equal size, side by side."""

    classes: int
    rows: int  # of each class
    columns: int
    first_class: int
    first_row: int
    first_column: int


class _Span(NamedTuple):
    """Rows (or columns) of whole classes, T at most; of a class that is larger, T at a time."""

    at: slice
    first_class: int
    last_class: int
    doubtful: bool = False  # some of them have a content that occurs in two classes


class _Tile(NamedTuple):
    rows: _Span
    columns: _Span
    on_diagonal: bool  # of a symmetric matrix: it holds both its halves


class _Block(NamedTuple):
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
class _Layout:
    row_order: Tensor  # (R,)
    column_order: Tensor  # (C,)
    runs: list[_Run]

    @staticmethod
    def of(comparison: Comparison) -> _Layout:
        """Classes by size, rows by class; a row and the column that is itself at equal places of their class."""
        rows, columns, n = comparison.row_classes, comparison.column_classes, comparison.classes
        row_counts = torch.bincount(rows, minlength=n)
        column_counts = row_counts if comparison.same else torch.bincount(columns, minlength=n)
        sizes, by_size = torch.sort(row_counts * (len(columns) + 1) + column_counts)
        rank = torch.empty_like(by_size)
        rank[by_size] = torch.arange(n, device=rank.device)
        row_order = torch.argsort(rank[rows], stable=True)
        if comparison.same:
            column_order = row_order
        else:
            place = torch.full_like(columns, len(rows))
            if comparison.own is not None:
                place[comparison.own] = torch.arange(len(rows), device=place.device)
            column_order = torch.argsort(rank[columns] * (len(rows) + 1) + place)
        return _Layout(row_order, column_order, _runs(sizes, len(columns) + 1))


def _runs(sizes: Tensor, base: int) -> list[_Run]:
    """Runs of equal numbers rows·base + columns. The one transfer that the layout waits for."""
    values, counts = torch.unique_consecutive(sizes, return_counts=True)
    runs, first_class, first_row, first_column = [], 0, 0, 0
    for size, classes in torch.stack([values, counts], dim=1).tolist():
        rows, columns = divmod(size, base)
        runs.append(_Run(classes, rows, columns, first_class, first_row, first_column))
        first_class += classes
        first_row += classes * rows
        first_column += classes * columns
    return runs


def _spans(sizes: list[tuple[int, int]], tile: int) -> Iterator[_Span]:
    """Cut rows at edges of classes; sizes: (how many classes, rows of each) in order."""
    start = stop = first = current = 0  # rows start:stop are of classes first:current

    for classes, size in sizes:
        end = current + classes
        while size and current < end:
            room = (start + tile - stop) // size
            if stop > start and not room:
                yield _Span(slice(start, stop), first, current - 1)
                start = stop
            elif size > tile:
                for at in range(stop, stop + size, tile):
                    yield _Span(slice(at, min(at + tile, stop + size)), current, current)
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
        yield _Span(slice(start, stop), first, current - 1)


def _marked(spans: list[_Span], contents: Tensor | None) -> list[_Span]:
    """Say which spans hold contents that occur in two classes; contents are negative elsewhere."""
    if contents is None or not spans:
        return spans
    doubtful = torch.stack([contents[span.at].amax() >= 0 for span in spans]).tolist()
    return [span._replace(doubtful=mark) for span, mark in zip(spans, doubtful, strict=True)]


def _tiles(rows: list[_Span], columns: list[_Span], *, symmetric: bool) -> Iterator[_Tile]:
    """All tiles that hold a negative; of a symmetric matrix those on and above the diagonal."""
    for number, row in enumerate(rows):
        for column in columns[number if symmetric else 0 :]:
            if not row.first_class == row.last_class == column.first_class == column.last_class:
                yield _Tile(row, column, on_diagonal=symmetric and row.at == column.at)


def _blocks(runs: list[_Run], tile: int, *, own: bool) -> Iterator[_Block]:
    """All pairs of one class, in blocks of about T² logits."""
    for run in runs:
        positives = run.columns - own
        if not run.rows or positives < 1:
            continue
        counts = (positives, run.rows)
        if max(run.rows, run.columns) <= tile:
            step = max(1, tile * tile // (run.rows * run.columns))
            for first in range(0, run.classes, step):
                classes = min(step, run.classes - first)
                row, column = run.first_row + first * run.rows, run.first_column + first * run.columns
                end_row, end_column = row + classes * run.rows, column + classes * run.columns
                yield _Block(slice(row, end_row), slice(column, end_column), classes, own, *counts)
        else:
            for rows, columns, diagonal in _pieces(run, tile):
                yield _Block(rows, columns, 1, own and diagonal, *counts)


def _pieces(run: _Run, tile: int) -> Iterator[tuple[slice, slice, bool]]:
    """Cut each class of a run into squares of at most T × T; those with equal numbers hold its diagonal."""
    for number in range(run.classes):
        row_start, column_start = run.first_row + number * run.rows, run.first_column + number * run.columns
        for i in range(0, run.rows, tile):
            rows = slice(row_start + i, row_start + min(i + tile, run.rows))
            for j in range(0, run.columns, tile):
                yield rows, slice(column_start + j, column_start + min(j + tile, run.columns)), i == j


# The walk


@dataclass
class _Anchors:
    """What one side knows of its anchors, n of them."""

    log_weights: Tensor  # (n,)
    log_negatives: Tensor  # (n,) L; while tiles are summed plainly, exp(L)
    log_push: Tensor  # (n,) log u
    log_positives: Tensor  # (n,) log Σ_p exp(s_ip), SupCon only
    nearest_negative: Tensor  # (n,) only where hits are asked for
    nearest_positive: Tensor  # (n,)

    @staticmethod
    def of(weights: Tensor, like: Tensor) -> _Anchors:
        log_weights = weights.to(like.dtype).log()
        nothing = [torch.full_like(log_weights, -math.inf) for _ in range(5)]
        return _Anchors(log_weights, *nothing)

    def hits(self) -> Tensor:
        return self.nearest_positive > self.nearest_negative


class _Walk:
    """One loss: its tiles, its vectors, and the gradients they add up to. Rows and columns are in order here."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None,
        comparison: Comparison,
        largest: float,
        tile: int | None,
        *,
        gradient: bool,
        hits: bool,
    ) -> None:
        self.comparison, self.gradient, self.hits_wanted = comparison, gradient, hits
        self.layout = layout = _Layout.of(comparison)
        self.x = x[layout.row_order]
        self.y = self.x if y is None else y[layout.column_order]
        self.side = tile or side_of_tiles(len(self.x), len(self.y), x, symmetric=y is None)
        # Where no exp(s) and no sum of them can leave the range of the numbers, they need no maxima.
        self.plain = largest <= 0.6 * math.log(torch.finfo(x.dtype).max)
        self.anchors = _Anchors.of(comparison.row_weights[layout.row_order], x)
        self.column_anchors = self._column_anchors()
        self.tiles = self._cut()
        self.kept: list[Tensor] = []
        self.room = KEPT_BYTES
        self.buffers = [x.new_empty(0), x.new_empty(0)]
        self.ones = x.new_empty(0)
        self.value = x.new_zeros(())
        if gradient:
            self.dx = torch.zeros_like(self.x)
            self.dy = self.dx if y is None else torch.zeros_like(self.y)

    def run(self) -> Tensor:
        self._sum_negatives()
        if self.comparison.objective == "supcon":
            self._sum_positives()
        self._add_pairs()
        if self.gradient:
            self._push_negatives()
        return self.value

    def gradients(self) -> list[Tensor]:
        """∂/∂x and, unless y is x, ∂/∂y, in the caller's order."""
        orders = [(self.dx, self.layout.row_order)]
        if self.dy is not self.dx:
            orders.append((self.dy, self.layout.column_order))
        return [torch.empty_like(sums).index_copy_(0, order, sums) for sums, order in orders]

    def hits(self) -> Hits:
        rows = _in_order(self.anchors.hits(), self.layout.row_order)
        if self.column_anchors is None or self.comparison.same:
            return Hits(rows, None)
        return Hits(rows, _in_order(self.column_anchors.hits(), self.layout.column_order))

    def _column_anchors(self) -> _Anchors | None:
        """The anchors among the columns: the rows themselves, others, or none."""
        if self.comparison.same:
            return self.anchors
        weights = self.comparison.column_weights
        return None if weights is None else _Anchors.of(weights[self.layout.column_order], self.x)

    def _cut(self) -> list[_Tile]:
        runs, same = self.layout.runs, self.comparison.same
        self.row_contents = _ordered(self.comparison.row_contents, self.layout.row_order)
        self.column_contents = _ordered(self.comparison.column_contents, self.layout.column_order)
        rows = _marked(list(_spans([(run.classes, run.rows) for run in runs], self.side)), self.row_contents)
        columns = rows
        if not same:
            columns = list(_spans([(run.classes, run.columns) for run in runs], self.side))
            columns = _marked(columns, self.column_contents)
        return list(_tiles(rows, columns, symmetric=same))

    # First walk: L

    def _sum_negatives(self) -> None:
        if self.plain:  # L holds exp(L) during the walk
            for side in self._sides():
                side.log_negatives.zero_()
        for tile in self.tiles:
            logits = self._logits(tile, keep=self.gradient)
            if self.hits_wanted:
                self._see(tile, logits)
            self._sum(tile, logits)
        if self.plain:
            for side in self._sides():
                side.log_negatives.log_()

    def _sum(self, tile: _Tile, logits: Tensor) -> None:
        """Add a tile's negatives to L of its rows and, where they ask, of its columns."""
        views = [(self.anchors, tile.rows.at, logits)]
        if self.column_anchors is not None and not tile.on_diagonal:
            views.append((self.column_anchors, tile.columns.at, logits.T))
        if self.plain:
            logits.exp_()
        for side, at, seen in views:
            sums = side.log_negatives[at]
            if self.plain:
                sums.addmv_(seen, self._ones(seen.shape[1]))  # faster than a sum along either side
            else:
                torch.logaddexp(sums, torch.logsumexp(seen, dim=1), out=sums)

    def _see(self, tile: _Tile, logits: Tensor) -> None:
        """Keep the nearest negative of each anchor."""
        _raise_to(self.anchors.nearest_negative[tile.rows.at], logits.amax(dim=1))
        if self.column_anchors is not None and not tile.on_diagonal:
            _raise_to(self.column_anchors.nearest_negative[tile.columns.at], logits.amax(dim=0))

    # Second walk: ∂/∂s_in = u_i exp(s_in), and for columns that ask u_n exp(s_in) beside it

    def _push_negatives(self) -> None:
        row_push, column_push = self.anchors.log_push, None
        if self.column_anchors is not None:
            column_push = self.column_anchors.log_push
        if self.plain:
            row_push = row_push.exp()
            column_push = column_push.exp() if column_push is not None else None
        for number, tile in enumerate(self.tiles):
            rows, columns = tile.rows.at, tile.columns.at
            push = self._pushes(number, tile, row_push, column_push)
            self.dx[rows].addmm_(push, self.y[columns])
            if not tile.on_diagonal:
                self.dy[columns].addmm_(push.T, self.x[rows])

    def _pushes(self, number: int, tile: _Tile, row_push: Tensor, column_push: Tensor | None) -> Tensor:
        """∂/∂s (T, T) of a tile's negatives, from u or, where the walk is not plain, log u."""
        if number < len(self.kept):
            found = self.kept[number]
        else:
            found = self._logits(tile, keep=False)
            if self.plain:
                found.exp_()
        of_rows = row_push[tile.rows.at, None]
        of_columns = None if column_push is None else column_push[None, tile.columns.at]
        if self.plain:
            if of_columns is None:
                return found.mul_(of_rows)
            return found.mul_(torch.add(of_rows, of_columns, out=self._buffer(1, found.shape)))
        if of_columns is None:
            return found.add_(of_rows).exp_()
        second = torch.add(found, of_columns, out=self._buffer(1, found.shape)).exp_()
        return found.add_(of_rows).exp_().add_(second)

    # Tiles

    def _logits(self, tile: _Tile, *, keep: bool) -> Tensor:
        """s (T, T) with −∞ wherever it is no negative, to be overwritten by the caller."""
        x, y = self.x[tile.rows.at], self.y[tile.columns.at]
        shape = (len(x), len(y))
        if keep and self._has_room_for(shape):
            logits = x @ y.T
            self.kept.append(logits)
        else:
            logits = torch.mm(x, y.T, out=self._buffer(0, shape))
        self._blank_positives(tile, logits)
        if self.row_contents is not None and tile.rows.doubtful and tile.columns.doubtful:
            assert self.column_contents is not None  # noqa: S101 (both or none)
            same = self.row_contents[tile.rows.at, None] == self.column_contents[None, tile.columns.at]
            logits.masked_fill_(same, -math.inf)
        return logits

    def _has_room_for(self, shape: tuple[int, int]) -> bool:
        """Whether one more tile may be kept. Once one may not, none may: those kept are the first ones."""
        wanted = math.prod(shape) * self.x.element_size()
        fits = wanted <= self.room
        self.room = self.room - wanted if fits else 0
        return fits

    def _blank_positives(self, tile: _Tile, logits: Tensor) -> None:
        """−∞ where row and column are of one class: a rectangle for each class, all on one line in a run."""
        first = max(tile.rows.first_class, tile.columns.first_class)
        last = min(tile.rows.last_class, tile.columns.last_class)
        width = logits.shape[1]
        for run in self.layout.runs if first <= last else ():
            low, high = max(first, run.first_class), min(last + 1, run.first_class + run.classes)
            if low >= high or not run.rows or not run.columns:
                continue
            row = run.first_row + (low - run.first_class) * run.rows - tile.rows.at.start
            column = run.first_column + (low - run.first_class) * run.columns - tile.columns.at.start
            if max(run.rows, run.columns) > self.side:  # a class cut by the tile's edges; the only one it shares
                logits[max(row, 0) : row + run.rows, max(column, 0) : column + run.columns] = -math.inf
                continue
            size = (high - low, run.rows, run.columns)
            strides = (run.rows * width + run.columns, width, 1)
            logits.as_strided(size, strides, logits.storage_offset() + row * width + column).fill_(-math.inf)

    def _buffer(self, number: int, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Room for a tile, taken once and used again."""
        size = math.prod(shape)
        if self.buffers[number].numel() < size:
            self.buffers[number] = self.x.new_empty(size)
        return self.buffers[number][:size].view(shape)

    def _ones(self, n: int) -> Tensor:
        if len(self.ones) < n:  # really n of them: a product with one number, expanded, is five times as slow
            self.ones = self.x.new_ones(n)
        return self.ones[:n]

    def _sides(self) -> list[_Anchors]:
        if self.column_anchors is None or self.column_anchors is self.anchors:
            return [self.anchors]
        return [self.anchors, self.column_anchors]

    # Pairs

    def _blocks(self) -> Iterator[tuple[_Block, Tensor]]:
        """Blocks of pairs and their logits (B, A, P)."""
        own = self.comparison.own is not None
        for block in _blocks(self.layout.runs, self.side, own=own):
            yield block, torch.bmm(block.of_rows(self.x), block.of_columns(self.y).mT)

    def _directions(self, block: _Block, logits: Tensor) -> list[tuple[_Anchors, slice, Tensor, int]]:
        """The rows' view of a block, and the columns' where these ask too and are not the rows."""
        views = [(self.anchors, block.rows, logits, block.row_positives)]
        if self.column_anchors is not None and self.column_anchors is not self.anchors:
            views.append((self.column_anchors, block.columns, logits.mT, block.column_positives))
        return views

    def _sum_positives(self) -> None:
        """log Σ_p exp(s_ip), and from it and L the push of SupCon."""
        for block, logits in self._blocks():
            if block.diagonal:
                logits.diagonal(dim1=1, dim2=2).fill_(-math.inf)
            for side, at, seen, positives in self._directions(block, logits):
                sums = side.log_positives[at].view(block.classes, -1)
                torch.logaddexp(sums, torch.logsumexp(seen, dim=2), out=sums)
                total = torch.logaddexp(side.log_negatives[at], side.log_positives[at])
                side.log_push[at] = side.log_weights[at] + math.log(positives) - total

    def _add_pairs(self) -> None:
        """The loss, the pull of each pair with its gradient and, for NT-Xent, the push of each anchor."""
        for block, logits in self._blocks():
            if block.diagonal:
                logits.diagonal(dim1=1, dim2=2).fill_(math.inf)  # a loss of 0 without gradient
            pulls = [self._pair_terms(block, *view) for view in self._directions(block, logits)]
            if self.gradient:
                pull = pulls[0] if len(pulls) == 1 else pulls[0] + pulls[1].mT
                block.of_rows(self.dx).baddbmm_(pull, block.of_columns(self.y), alpha=-1)
                block.of_columns(self.dy).baddbmm_(pull.mT, block.of_rows(self.x), alpha=-1)

    def _pair_terms(self, block: _Block, side: _Anchors, at: slice, logits: Tensor, positives: int) -> Tensor:
        """Add the loss and the push of a block; returns its pull v (B, A, P)."""
        negatives = side.log_negatives[at].view(block.classes, -1, 1)
        log_weights = side.log_weights[at].view(block.classes, -1, 1)
        # With one positive SupCon is NT-Xent, whose form keeps the small values that a difference would lose.
        if self.comparison.objective == "ntxent" or positives == 1:
            minus_loss = F.logsigmoid(logits - negatives)
            pull = torch.sigmoid(negatives - logits)
            if self.comparison.objective == "ntxent":
                push = side.log_push[at].view(block.classes, -1)
                more = torch.logsumexp(minus_loss - logits, dim=2) + log_weights[..., 0]
                torch.logaddexp(push, more, out=push)
        else:
            total = torch.logaddexp(negatives, side.log_positives[at].view(block.classes, -1, 1))
            minus_loss = logits - total
            pull = 1 - minus_loss.exp() * positives
            if block.diagonal:
                for values in (minus_loss, pull):
                    values.diagonal(dim1=1, dim2=2).zero_()
        if self.hits_wanted:
            self._see_positives(block, side, at, logits)
        weights = log_weights.exp()
        self.value.sub_((minus_loss * weights).sum())
        return pull.mul_(weights)

    def _see_positives(self, block: _Block, side: _Anchors, at: slice, logits: Tensor) -> None:
        positive = logits.masked_fill(logits == math.inf, -math.inf) if block.diagonal else logits
        _raise_to(side.nearest_positive[at], positive.amax(dim=2).flatten())


def side_of_tiles(rows: int, columns: int, like: Tensor, *, symmetric: bool) -> int:
    """T for logits (rows, columns).

    On the CPU 768: float32, D = 128, 2 cores with 0.5 MB of L2 each and 32 MB of L3 took for 8192 rows 0.43 s with
    256, 0.32 s with 512, 0.30 s with 768 and 0.3 to 0.6 s with 1024, whose power-of-two strides share cache lines.
    Where 512 lets the second walk find all tiles ready and 768 does not, at 4096 rows, 512 is ahead by a seventh.
    Elsewhere 4096, since each tile costs a dozen launches.
    """
    if like.device.type != "cpu":
        return 4096
    for side in (768, 512):
        high, wide = math.ceil(rows / side), math.ceil(columns / side)
        tiles = high * (high + 1) // 2 if symmetric else high * wide
        if tiles * side**2 * like.element_size() <= KEPT_BYTES:
            return side
    return 768


def _raise_to(kept: Tensor, seen: Tensor) -> None:
    torch.maximum(kept, seen, out=kept)


def _ordered(values: Tensor | None, order: Tensor) -> Tensor | None:
    return None if values is None else values[order]


def _in_order(values: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(values).index_copy_(0, order, values)
