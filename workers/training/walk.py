"""The walks over a matrix of logits that give a contrastive loss and its gradient; `tiles.py` has the formulas.

Letters: those of `tiles.py` and `layout.py`. Every vector here is in the layout's order, and all that is infinite,
log 0 above all, is meant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.training.comparison import Comparison, Hits
from workers.training.layout import Block, Layout, Tile


@dataclass
class Anchors:
    """What one side knows of its anchors, n of them."""

    log_weights: Tensor  # (n,)
    log_negatives: Tensor  # (n,) L; while tiles are summed plainly, exp(L)
    log_push: Tensor  # (n,) log u
    log_positives: Tensor  # (n,) log Σ_p exp(s_ip), SupCon only
    nearest_negative: Tensor  # (n,) only where hits are asked for
    nearest_positive: Tensor  # (n,)

    @staticmethod
    def of(weights: Tensor, like: Tensor) -> Anchors:
        log_weights = weights.to(like.dtype).log()
        nothing = [torch.full_like(log_weights, -math.inf) for _ in range(5)]
        return Anchors(log_weights, *nothing)

    def hits(self) -> Tensor:
        return self.nearest_positive > self.nearest_negative


class Walk:
    """One loss: its tiles, its vectors, and the gradients they add up to.

    `side` is T; `room` the bytes of tiles that the first walk may keep for the second.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None,
        comparison: Comparison,
        largest: float,
        *,
        side: int,
        room: int,
        gradient: bool,
        hits: bool,
    ) -> None:
        self.comparison, self.gradient, self.hits_wanted = comparison, gradient, hits
        self.layout = layout = Layout.of(comparison)
        self.x = x[layout.row_order]
        self.y = self.x if y is None else y[layout.column_order]
        self.side = side
        # Where no exp(s) and no sum of them can leave the range of the numbers, they need no maxima.
        self.plain = largest <= 0.6 * math.log(torch.finfo(x.dtype).max)
        self.anchors = Anchors.of(comparison.row_weights[layout.row_order], x)
        self.column_anchors = self._column_anchors()
        self.row_contents = _ordered(comparison.row_contents, layout.row_order)
        self.column_contents = _ordered(comparison.column_contents, layout.column_order)
        self.tiles = layout.tiles(side, self.row_contents, self.column_contents)
        self.kept: list[Tensor] = []
        self.room = room
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

    def _column_anchors(self) -> Anchors | None:
        """The anchors among the columns: the rows themselves, others, or none."""
        if self.comparison.same:
            return self.anchors
        weights = self.comparison.column_weights
        return None if weights is None else Anchors.of(weights[self.layout.column_order], self.x)

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

    def _sum(self, tile: Tile, logits: Tensor) -> None:
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

    def _see(self, tile: Tile, logits: Tensor) -> None:
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

    def _pushes(self, number: int, tile: Tile, row_push: Tensor, column_push: Tensor | None) -> Tensor:
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

    def _logits(self, tile: Tile, *, keep: bool) -> Tensor:
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

    def _blank_positives(self, tile: Tile, logits: Tensor) -> None:
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

    def _sides(self) -> list[Anchors]:
        if self.column_anchors is None or self.column_anchors is self.anchors:
            return [self.anchors]
        return [self.anchors, self.column_anchors]

    # Pairs

    def _blocks(self) -> Iterator[tuple[Block, Tensor]]:
        """Blocks of pairs and their logits (B, A, P)."""
        for block in self.layout.blocks(self.side):
            yield block, torch.bmm(block.of_rows(self.x), block.of_columns(self.y).mT)

    def _directions(self, block: Block, logits: Tensor) -> list[tuple[Anchors, slice, Tensor, int]]:
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

    def _pair_terms(self, block: Block, side: Anchors, at: slice, logits: Tensor, positives: int) -> Tensor:
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

    def _see_positives(self, block: Block, side: Anchors, at: slice, logits: Tensor) -> None:
        positive = logits.masked_fill(logits == math.inf, -math.inf) if block.diagonal else logits
        _raise_to(side.nearest_positive[at], positive.amax(dim=2).flatten())


def _raise_to(kept: Tensor, seen: Tensor) -> None:
    torch.maximum(kept, seen, out=kept)


def _ordered(values: Tensor | None, order: Tensor) -> Tensor | None:
    return None if values is None else values[order]


def _in_order(values: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(values).index_copy_(0, order, values)
