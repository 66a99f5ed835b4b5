"""What the tiled loss is asked to reach, beside what it did reach."""

from __future__ import annotations

from typing import NamedTuple

from bench.loss_contestants import CONTESTANTS, Case, Name
from bench.loss_results import MB, Results, markdown, plain

RATE_ROWS = 16384


class Floor(NamedTuple):
    """One thing asked. `reached` is None where it was not measured."""

    where: str
    asked: str
    measured: str
    reached: bool | None


def floors(results: Results, widths: list[int], dtype: str) -> list[Floor]:
    """All of them. At D = 384 the matrix product, of which the tiled loss needs two thirds of what autograd does, takes

    most of the time of both, so no implementation can be 5 times as fast there: memory only is asked of each width.
    """
    small, middle, large = (Case("tiled", rows, 128, 2, dtype) for rows in (1024, 4096, 8192))
    found = [
        _faster(results, small, "pml-ntxent", 1500),
        _smaller(results, small, "pml-ntxent", 0.01),
        _faster(results, middle, "autograd", 5),
        _faster(results, large, "autograd", 3),
        _faster(results, large, "pml-supcon", 10),
    ]
    for width in widths:
        found += [
            _smaller(results, large._replace(width=width), "autograd", 0.05),
            _smaller(results, large._replace(width=width), "pml-supcon", 0.05),
        ]
    found += _of_large_batches(results, dtype)
    found += [_more_rows_of_a_label(results, Case("tiled", rows, 128, 2, dtype)) for rows in (4096, 8192)]
    found.append(_product_rate(results, Case("tiled", RATE_ROWS, 128, 2, dtype)))
    return found


def floors_table(found: list[Floor], whose: str = "Likeness tiled") -> list[str]:
    """A row for each: where, asked, measured, reached or missed."""
    verdicts = {True: "reached", False: "missed", None: ""}
    rows = [[one.where, one.asked, one.measured, verdicts[one.reached]] for one in found]
    return markdown([whose, "asked", "measured", "verdict"], rows)


def _faster(results: Results, tiled: Case, other: Name, times: float) -> Floor:
    measured = results.times_of(tiled._replace(name=other), tiled)
    return _floor(
        f"{_batch(tiled)}, against {CONTESTANTS[other].title}",
        f"≥ {times:g}× faster",
        None if measured is None else f"{plain(measured)}×",
        measured is not None and measured >= times,
    )


def _smaller(results: Results, tiled: Case, other: Name, share: float) -> Floor:
    measured = results.share_of_memory(tiled, tiled._replace(name=other))
    return _floor(
        f"{_batch(tiled)}, against {CONTESTANTS[other].title}",
        f"≤ {share:.0%} of its memory".replace("%", " %"),
        None if measured is None else f"{100 * measured:.2g} %",
        measured is not None and measured <= share,
    )


def _of_large_batches(results: Results, dtype: str) -> list[Floor]:
    half, whole = Case("tiled", 16384, 128, 2, dtype), Case("tiled", 32768, 128, 2, dtype)
    taken, longer = results.bytes_above_inputs.get(whole), results.times_of(whole, half)
    return [
        _floor(
            _batch(whole),
            "< 400 MB above the inputs",
            None if taken is None else f"{taken / MB:.0f} MB",
            taken is not None and taken < 400 * MB,
        ),
        _floor(
            f"{_batch(whole)}, against N = 16384",
            "≤ 4.6× its time",
            None if longer is None else f"{longer:.2f}×",
            longer is not None and longer <= 4.6,
        ),
    ]


def _more_rows_of_a_label(results: Results, two: Case) -> Floor:
    longer = results.times_of(two._replace(per_label=8), two)
    return _floor(
        f"{_batch(two)}, 8 rows per label against 2",
        "≤ 1.6× the time",
        None if longer is None else f"{longer:.2f}×",
        longer is not None and longer <= 1.6,
    )


def _product_rate(results: Results, case: Case) -> Floor:
    share = results.share_of_product_rate(case)
    return _floor(
        f"{_batch(case)}, arithmetic rate",
        "≥ 60 % of the matrix product's",
        None if share is None else f"{100 * share:.0f} %",
        share is not None and share >= 0.6,
    )


def _floor(where: str, asked: str, measured: str | None, reached: bool) -> Floor:
    return Floor(where, asked, measured or "not measured", reached if measured else None)


def _batch(case: Case) -> str:
    return f"N = {case.rows}, D = {case.width}"
