"""What the loss benchmark measured, and its tables.

A ratio says how many times the time or memory of Likeness tiled the other one takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.loss_contestants import CONTESTANTS, Case
from bench.rounds import Times, ratio

MB = 1e6


class Product(NamedTuple):
    """A product of two square float32 matrices, timed in the rounds of the tiled loss on `rows` rows of `width`."""

    side: int
    rows: int
    width: int

    @property
    def operations(self) -> int:
        return 2 * self.side**3


@dataclass
class Results:
    """Everything measured. A case that is in neither was not measured; `missing` says why."""

    times: dict[Case, Times] = field(default_factory=dict)
    bytes_above_inputs: dict[Case, int] = field(default_factory=dict)
    products: dict[Product, Times] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def times_of(self, over: Case, under: Case) -> float | None:
        """How many times longer `over` takes."""
        if over not in self.times or under not in self.times:
            return None
        return ratio(self.times[over], self.times[under])

    def share_of_memory(self, part: Case, whole: Case) -> float | None:
        """Peak memory of `part` in that of `whole`."""
        if part not in self.bytes_above_inputs or whole not in self.bytes_above_inputs:
            return None
        return self.bytes_above_inputs[part] / self.bytes_above_inputs[whole]

    def product_rate(self, rows: int, width: int) -> tuple[float, int] | None:
        """(operations per second, side) of the fastest matrix product seen beside that batch: what the machine can do.

        The fastest call and not a median: whatever slows a product is not the machine's own rate.
        """
        rates = [
            (product.operations / min(times.by_round.values()), product.side)
            for product, times in self.products.items()
            if (product.rows, product.width) == (rows, width)
        ]
        return max(rates, default=None)

    def share_of_product_rate(self, case: Case) -> float | None:
        """The rate of the tiled loss, from its median time, in that of the matrix product."""
        fastest = self.product_rate(case.rows, case.width)
        if fastest is None or case not in self.times:
            return None
        return operations(case) / self.times[case].median / fastest[0]

    def json(self) -> dict[str, Any]:
        """Raw figures: seconds of each round, bytes."""
        return {
            "cases": [
                {
                    **case._asdict(),
                    "seconds_by_round": self.times[case].by_round if case in self.times else None,
                    "bytes_above_inputs": self.bytes_above_inputs.get(case),
                }
                for case in dict.fromkeys([*self.times, *self.bytes_above_inputs])
            ],
            "products": [
                {**product._asdict(), "seconds_by_round": times.by_round} for product, times in self.products.items()
            ],
            "missing": self.missing,
        }


def operations(case: Case) -> int:
    """Floating-point operations in the matrix products of the tiled loss, forward and backward: 4·N²·D.

    Over the upper triangle of logits, N²/2 of them, four products of 2·D operations each: the logits, the logits again
    in the second walk, and what they add to the gradient of their rows and of their columns. Exponentials, sums and
    masks are not counted.
    """
    return 4 * case.rows**2 * case.width


def time_table(results: Results, width: int, per_label: int, dtype: str) -> list[str]:
    """Median times, each with its ratio to Likeness tiled; a row for each N."""
    return _by_rows(results.times, width, per_label, dtype, lambda case, tiled: _time_cell(results, case, tiled))


def memory_table(results: Results, width: int, per_label: int, dtype: str) -> list[str]:
    """Peak memory above the inputs, each with its ratio to Likeness tiled; a row for each N."""
    measured = results.bytes_above_inputs
    return _by_rows(measured, width, per_label, dtype, lambda case, tiled: _memory_cell(measured, case, tiled))


def markdown(headings: list[str], rows: list[list[str]]) -> list[str]:
    """A table as Markdown, its columns aligned."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    rule = ["-" * width for width in widths]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [headings, rule, *rows]
    ]


def seconds(value: float) -> str:
    """`0.0132` → `13.2 ms`."""
    return f"{plain(value * 1000)} ms" if value < 1 else f"{plain(value)} s"


def plain(value: float) -> str:
    """Three digits, or all before the point: `4.66`, `0.053`, `4663`."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _by_rows(
    measured: Iterable[Case], width: int, per_label: int, dtype: str, cell: Callable[[Case, Case], str]
) -> list[str]:
    wanted = {case for case in measured if case[2:] == (width, per_label, dtype)}
    names = [name for name in CONTESTANTS if any(case.name == name for case in wanted)]
    lines = []
    for rows in sorted({case.rows for case in wanted}):
        cases = [Case(name, rows, width, per_label, dtype) for name in names]
        tiled = Case("tiled", *cases[0][1:])
        lines.append([f"{rows}", *[cell(case, tiled) if case in wanted else "" for case in cases]])
    return markdown(["N", *[CONTESTANTS[name].title for name in names]], lines)


def _time_cell(results: Results, case: Case, tiled: Case) -> str:
    shown = seconds(results.times[case].median)
    longer = results.times_of(case, tiled)
    return shown if case == tiled or longer is None else f"{shown} ({plain(longer)}×)"


def _memory_cell(measured: Mapping[Case, int], case: Case, tiled: Case) -> str:
    shown = f"{plain(measured[case] / MB)} MB"
    if case == tiled or not measured.get(tiled):
        return shown
    return f"{shown} ({plain(measured[case] / measured[tiled])}×)"
