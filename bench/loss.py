"""Time and memory of the contrastive loss, forward and backward, beside the alternatives. `--help` tells more."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from rich.console import Console

from bench.loss_agreement import Agreement, agree_when_small
from bench.loss_contestants import Case
from bench.loss_floors import RATE_ROWS, Floor, floors, floors_table
from bench.loss_measure import cases_that_fit, groups, measure_memory, measure_times
from bench.loss_plot import save_plot
from bench.loss_results import Product, Results, memory_table, operations, time_table
from bench.machine import OtherPrograms, describe, use_physical_cores
from service.demo.progress import Report, progress

PLOT = Path("docs/figures/loss-scaling.png")
SIZES = [256, 1024, 4096, 8192, 16384, 32768, 65536]
QUICK_SIZES = [64, 192]
WIDTHS = [128, 384]
QUICK_WIDTHS = [128]
DTYPES = {"cpu": ["float32"], "cuda": ["float32", "bfloat16"]}
PRODUCT_SIDES = {"cpu": [2048, 3072, 4096], "cuda": [4096, 8192, 16384]}
QUICK_SIDES = [512, 1024]

EPILOG = """
What is compared, on the same batches (random, two or eight rows per label), temperature 0.07:
  Likeness tiled    NTXentLoss(memory="tiled")
  Likeness dense    NTXentLoss(memory="dense")
  plain autograd    NT-Xent in a few lines of PyTorch, written with care (bench/loss_contestants.py)
  PML SupConLoss    of PyTorch Metric Learning; the same loss as NT-Xent with two rows per label
  PML NTXentLoss    of PyTorch Metric Learning; O(N³), so up to N = 1024, which takes 17 GB

How: first all are checked to agree in value and gradient, on a small batch and on each one that is timed.
Peak memory is taken in a process of its own for each. Times are taken in rounds over all implementations and both
numbers of rows per label, so that noise hits all alike; shown are medians, and medians of the ratios within a round.
Leave the machine alone meanwhile: a full run takes about a quarter of an hour on two cores.

examples:
  python -m bench.loss                            everything; writes docs/figures/loss-scaling.png
  python -m bench.loss --quick                    does it work here? small sizes, under a minute
  python -m bench.loss --sizes 4096 --widths 384  one size
  python -m bench.loss --json figures.json        raw figures too: seconds of every round, bytes
"""


def main() -> None:
    options = parse(sys.argv[1:])
    device = torch.device(options.device)
    threads = use_physical_cores()
    about = describe(device, threads)
    _show("Machine", about)
    agreements = agree_when_small(device)
    _require(agreements)
    results, dtypes, others = Results(), DTYPES[device.type], OtherPrograms()
    cases, results.missing = cases_that_fit(options.sizes, options.widths, dtypes, device)
    console = Console(stderr=True)
    with progress(console, "memory") as report:
        measure_memory(results, cases, device, report)
    with progress(console, "times") as report:
        agreements += _measure_all_times(results, groups(cases), options, device, report)
    _show("Other programs while this ran", [others.describe()])
    _show("Agreement", map(str, agreements))
    _print_figures(results, options, dtypes)
    asked = floors(results, options.widths, dtypes[0])
    _show("Floors (times at D = 128; at 384 the matrix product takes most of everybody's)", floors_table(asked))
    _write_files(results, asked, about, options, dtypes[0])
    if options.strict and not all(floor.reached for floor in asked):
        sys.exit("Not every floor was reached.")


def _measure_all_times(
    results: Results, together: list[list[Case]], options: argparse.Namespace, device: torch.device, report: Report
) -> list[Agreement]:
    """Time each list of cases in rounds of its own; exits with what disagrees as soon as something does."""
    agreements: list[Agreement] = []
    for number, group in enumerate(together):
        say = partial(_say, report, number, len(together), group)
        found = measure_times(results, group, _products(group, options, device), device, say)
        _require(found)
        agreements += found
    report(len(together), len(together), "")
    return agreements


def _say(report: Report, number: int, total: int, group: list[Case], what: str) -> None:
    sizes = ", ".join(str(rows) for rows in sorted({case.rows for case in group}))
    report(number, total, f"N = {sizes}, D = {group[0].width}, {group[0].dtype}: {what}")


def _print_figures(results: Results, options: argparse.Namespace, dtypes: list[str]) -> None:
    for dtype, width in product(dtypes, options.widths):
        for per_label in (2, 8):
            heading = f"Median time, forward and backward: D = {width}, {per_label} rows per label, {dtype}"
            _show(
                f"{heading} (in brackets: of the time of Likeness tiled)", time_table(results, width, per_label, dtype)
            )
        heading = f"Peak memory above the inputs: D = {width}, 2 rows per label, {dtype}"
        _show(f"{heading} (in brackets: of that of Likeness tiled)", memory_table(results, width, 2, dtype))
    _show("Arithmetic rate of Likeness tiled, counted as 4·N²·D operations, forward and backward", _rates(results))
    if results.missing:
        _show("Not measured", results.missing)


def _rates(results: Results) -> Iterator[str]:
    for rows, width in dict.fromkeys((one.rows, one.width) for one in results.products):
        case, fastest = Case("tiled", rows, width, 2), results.product_rate(rows, width)
        assert fastest is not None
        own, (most, side) = operations(case) / results.times[case].median, fastest
        yield (
            f"N = {rows}, D = {width}: {own / 1e9:.3g} GFLOP/s, {own / most:.0%} of the {most / 1e9:.3g} GFLOP/s of "
            f"the fastest torch.mm timed in the same rounds ({side}×{side}, float32)"
        )


def _write_files(
    results: Results, asked: list[Floor], about: list[str], options: argparse.Namespace, dtype: str
) -> None:
    if options.json is not None:
        raw = {"machine": about, **results.json(), "floors": [floor._asdict() for floor in asked]}
        options.json.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n")
    if options.plot is not None:
        where = about[2] if options.device == "cuda" else f"{torch.get_num_threads()} CPU cores"
        save_plot(results, options.plot, options.widths[0], dtype, where)
        print(f"\nPlot: {options.plot}")


def _products(group: list[Case], options: argparse.Namespace, device: torch.device) -> list[Product]:
    """Matrix products to time beside the batch whose arithmetic rate is asked for."""
    rows = RATE_ROWS if RATE_ROWS in options.sizes else max(options.sizes)
    if group[0].dtype != "float32" or all(case.rows != rows for case in group):
        return []
    sides = QUICK_SIDES if options.partial else PRODUCT_SIDES[device.type]
    return [Product(side, rows, group[0].width) for side in sides]


def _require(agreements: list[Agreement]) -> None:
    """Times of things that compute something else mean nothing."""
    if not all(one.agrees for one in agreements):
        sys.exit("\n".join(map(str, agreements)))


def _show(heading: str, lines: Iterable[str]) -> None:
    print("", f"## {heading}", "", *lines, sep="\n", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, defaults filled in; `partial`: this is no full run. Exits on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.loss",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"small batches only: N = {', '.join(map(str, QUICK_SIZES))}, D = 128"
    )
    parser.add_argument("--sizes", type=_rows, nargs="+", metavar="N", help="rows of the batches, multiples of 8")
    parser.add_argument("--widths", type=_positive, nargs="+", metavar="D", help="widths of a row (128 and 384)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: float32 and bfloat16 inputs")
    parser.add_argument("--plot", type=Path, metavar="PATH", help=f"where a full run draws its figure ({PLOT})")
    parser.add_argument("--no-plot", action="store_true", help="draw none")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the raw figures there")
    parser.add_argument("--strict", action="store_true", help="fail if a floor was not reached, or not measured")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this torch finds no CUDA device.")
    options.partial = options.quick or options.sizes is not None or options.widths is not None
    if options.plot is not None and options.partial:
        parser.error("--plot draws a full run: leave out --quick, --sizes and --widths.")
    if options.no_plot or options.partial:
        options.plot = None
    elif options.plot is None:
        options.plot = PLOT if options.device == "cpu" else PLOT.with_stem(f"{PLOT.stem}-{options.device}")
    options.sizes = sorted(set(options.sizes or (QUICK_SIZES if options.quick else SIZES)))
    options.widths = sorted(set(options.widths or (QUICK_WIDTHS if options.quick else WIDTHS)))
    return options


def _rows(text: str) -> int:
    rows = _positive(text)
    if rows % 8 or rows < 16:
        raise argparse.ArgumentTypeError(f"N must be a multiple of 8 and at least 16, not {text}.")
    return rows


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, not {text!r}.")
    return number


if __name__ == "__main__":
    main()
