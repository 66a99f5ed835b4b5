from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.training.comparison import Comparison
from workers.training.layout import Layout

LABELS = st.lists(st.integers(0, 5), max_size=20)


def comparison(rows: list[int], columns: list[int] | None) -> Comparison:
    row_classes = torch.tensor(rows, dtype=torch.long)
    weights = torch.ones(len(rows))
    if columns is None:
        own = torch.arange(len(rows))
        return Comparison("ntxent", 6, row_classes, row_classes, weights, own=own, same=True)
    return Comparison("ntxent", 6, row_classes, torch.tensor(columns, dtype=torch.long), weights)


def alike(layout: Layout, compared: Comparison) -> Tensor:
    rows, columns = compared.row_classes[layout.row_order], compared.column_classes[layout.column_order]
    return rows[:, None] == columns


@settings(deadline=None)
@given(rows=LABELS, columns=st.none() | LABELS, side=st.integers(1, 25))
def test_each_negative_is_in_one_tile(rows, columns, side):
    compared = comparison(rows, columns)
    layout = Layout.of(compared)
    times = torch.zeros(len(compared.row_classes), len(compared.column_classes), dtype=torch.long)
    for tile in layout.tiles(side, None, None):
        times[tile.rows.at, tile.columns.at] += 1
        if layout.symmetric and not tile.on_diagonal:
            times.T[tile.rows.at, tile.columns.at] += 1
        assert tile.rows.at.stop - tile.rows.at.start <= side
        assert tile.columns.at.stop - tile.columns.at.start <= side
    assert (times[~alike(layout, compared)] == 1).all()
    assert (times <= 1).all()


@settings(deadline=None)
@given(rows=LABELS, columns=st.none() | LABELS, side=st.integers(1, 25))
def test_each_pair_is_in_one_block(rows, columns, side):
    compared = comparison(rows, columns)
    layout = Layout.of(compared)
    places = torch.arange(len(compared.row_classes) * len(compared.column_classes)).view(
        len(compared.row_classes), len(compared.column_classes)
    )
    found: list[int] = []
    for block in layout.blocks(side):
        for rows_of_class, columns_of_class in zip(
            places[block.rows].split((block.rows.stop - block.rows.start) // block.classes),
            torch.arange(len(compared.column_classes))[block.columns].view(block.classes, -1),
            strict=True,
        ):
            square = rows_of_class[:, columns_of_class]
            found += square.flatten().tolist()
            if block.diagonal:
                assert torch.equal(square.diagonal() // places.shape[1], square.diagonal() % places.shape[1])
    wanted = alike(layout, compared)
    if layout.own:  # a row without another of its class has no pair
        wanted = wanted & (wanted.sum(dim=1, keepdim=True) > 1)
    assert sorted(found) == places[wanted].tolist()


def test_classes_come_by_size_and_spans_end_where_classes_do():
    layout = Layout.of(comparison([0, 0, 0, 1, 2, 2, 3, 3], None))
    assert [(run.classes, run.rows) for run in layout.runs] == [(2, 0), (1, 1), (2, 2), (1, 3)]
    spans = {
        (span.at.start, span.at.stop) for tile in layout.tiles(4, None, None) for span in (tile.rows, tile.columns)
    }
    assert spans == {(0, 3), (3, 5), (5, 8)}
