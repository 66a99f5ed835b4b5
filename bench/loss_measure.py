"""The measurements of the loss benchmark: which cases, their memory, their times."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import product

import torch

from bench.loss_agreement import Agreement, agree
from bench.loss_contestants import CONTESTANTS, Case, Outcome, batch, outcome
from bench.loss_memory import peaks_in_own_processes
from bench.loss_results import MB, Product, Results
from bench.machine import available_bytes, synchronize
from bench.rounds import interleaved, timed
from service.demo.progress import Report

# Larger batches than this only the tiled loss is given, and those with two rows per label.
DENSE_ROWS = 8192
# Of the memory there is, what one loss may be expected to take.
_SHARE_OF_MEMORY = 0.85


def cases_that_fit(
    sizes: list[int], widths: list[int], dtypes: list[str], device: torch.device
) -> tuple[list[Case], list[str]]:
    """(what to measure, what not and why)."""
    limit = _SHARE_OF_MEMORY * available_bytes(device)
    cases: list[Case] = []
    left_out: list[str] = []
    for dtype, width, rows, per_label in product(dtypes, widths, sizes, (2, 8)):
        if rows > DENSE_ROWS and per_label > 2:
            continue
        for name, contestant in CONTESTANTS.items():
            case = Case(name, rows, width, per_label, dtype)
            if contestant.most_rows is not None and rows > contestant.most_rows:
                continue
            if contestant.bytes_needed(case) <= limit:
                cases.append(case)
            else:
                left_out.append(f"{_words(case)}: takes about {contestant.bytes_needed(case) / MB:,.0f} MB")
    return cases, left_out


def groups(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases that are timed in the same rounds: of one width and dtype, each N by itself, the large ones together."""
    found: dict[tuple[int, str, int], list[Case]] = {}
    for case in cases:
        found.setdefault((case.width, case.dtype, min(case.rows, DENSE_ROWS + 1)), []).append(case)
    return list(found.values())


def measure_memory(results: Results, cases: list[Case], device: torch.device, report: Report) -> None:
    """Peak memory of those with two rows per label: with more it is about the same."""
    wanted = [case for case in cases if case.per_label == 2]
    report(0, len(wanted), "")
    for number, (case, peak) in enumerate(zip(wanted, peaks_in_own_processes(wanted, device), strict=True), start=1):
        report(number, len(wanted), _words(case))
        if peak is None:
            results.missing.append(f"{_words(case)}: its process for measuring memory died")
        else:
            results.bytes_above_inputs[case] = peak


def measure_times(
    results: Results, group: list[Case], products: list[Product], device: torch.device, say: Callable[[str], None]
) -> list[Agreement]:
    """Time a group in rounds, and matrix products with it, saying what is done. Returns how its outcomes agree."""
    wait = partial(synchronize, device)
    losses = {name: CONTESTANTS[name].make() for name in {case.name for case in group}}
    for case in group:  # what a library does once, on its first call
        outcome(losses[case.name], *batch(64, *case[2:], device))
    batches = {case[1:]: batch(*case[1:], device) for case in group}
    works: dict[Case | Product, Callable[[], object]] = {}
    first: dict[Case | Product, float] = {}
    agreements: list[Agreement] = []
    for kind, inputs in batches.items():
        outcomes: dict[Case, Outcome] = {}
        for case in (case for case in group if case[1:] == kind):
            say(f"{CONTESTANTS[case.name].title}, {case.per_label} per label, first call")
            work = partial(outcome, losses[case.name], *inputs)
            first[case], outcomes[case] = timed(work, wait)
            works[case] = work
        agreements += agree(outcomes, *inputs)
    for one in products:
        square = torch.randn(one.side, one.side, device=device)
        works[one] = partial(torch.mm, square, square)
        first[one], _ = timed(works[one], wait)
    for key, times in interleaved(works, first, wait, say).items():
        if isinstance(key, Product):
            results.products[key] = times
        else:
            results.times[key] = times
    return agreements


def _words(case: Case) -> str:
    title = CONTESTANTS[case.name].title
    return f"{title}, N = {case.rows}, D = {case.width}, {case.per_label} per label, {case.dtype}"
