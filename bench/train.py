"""Training side by side with sentence-transformers' own trainer: speed, quality, memory. `--help` tells more."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from bench.machine import OtherPrograms, describe, device, use_physical_cores
from bench.train_contestants import MODEL, TITLES, Name, Precisions, Train, Trained, Training, contestants, probed
from bench.train_data import KINDS, Kind, texts, tokens_of
from bench.train_growth import grown
from bench.train_plot import save_plot
from bench.train_quality import compare_quality
from bench.train_results import CACHED, Results, Speed, floors, floors_table, growth_table, quality_lines, speed_table
from encoders.registry import locate
from encoders.tokenizer import TextTokenizer
from service.demo.progress import Report, progress
from workers.training.precision import Precision

PLOT = Path("docs/figures/train-growth.png")
BATCHES: dict[Kind, int] = {"short": 64, "tail": 64, "long": 32}
STEPS: dict[Kind, int] = {"short": 9, "tail": 5, "long": 4}
ROUNDS = 3
GROWTH = [64, 128, 256, 512, 1024, 2048]
QUALITY_PAIRS = 2048
SEEDS = 3
PARTS = ["speed", "quality", "growth"]

EPILOG = """
What is compared: all-MiniLM-L6-v2, fine-tuned from its published weights on pairs from the standard library, by
  Likeness                      workers.training.trainer.Trainer
  SentenceTransformerTrainer    with MultipleNegativesRankingLoss, as in the sentence-transformers package
with one batch, learning rate, schedule, weight decay, clipping and temperature for both.

How: speeds are taken in rounds, first the one and then the other, each in a process of its own that waits while the
other trains; shown are medians over all steps and the median of the ratios within a round. Quality is the mean
reciprocal rank over the held-out modules, the same for both, after one epoch, over several seeds; the interval is a
bootstrap over the questions. Memory is that of a process of its own for each batch. Leave the machine alone meanwhile:
a full run takes half an hour on two cores.

examples:
  python -m bench.train                   everything; writes docs/figures/train-growth.png
  python -m bench.train --quick           does it work here? few steps, one seed, no floors; two minutes
  python -m bench.train --only speed      one of speed, quality, growth
  python -m bench.train --precision fp32  both held to one precision
"""


def main() -> None:
    options = parse(sys.argv[1:])
    threads = use_physical_cores()
    about = describe(torch.device(device()), threads)
    _show("Machine", about)
    precisions = _precisions(options.precision)
    results, others = Results(), OtherPrograms()
    console = Console(stderr=True)
    if {"speed", "quality"} & set(options.only):
        with contestants() as train:
            _compare(results, options, train, precisions, console)
    if "growth" in options.only:
        with progress(console, "growth") as report:
            _measure_growth(results, options, precisions["likeness"], report)
        _show("Growth with the batch: short pairs, one pass and micro-batches", growth_table(results))
    _show("Other programs while this ran", [others.describe()])
    asked = floors(results, precisions["likeness"])
    _show("Floors", floors_table(asked, "Likeness"))
    if options.json is not None:
        raw = {"machine": about, **results.json(), "floors": [floor._asdict() for floor in asked]}
        options.json.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n")
    if options.plot is not None and results.growth:
        save_plot(results.growth, options.plot, f"{threads} CPU cores")
        print(f"\nPlot: {options.plot}")
    if options.strict and not all(floor.reached for floor in asked):
        sys.exit("Not every floor was reached.")


def _compare(
    results: Results, options: argparse.Namespace, train: Train, precisions: Precisions, console: Console
) -> None:
    """What both do, side by side."""
    if "speed" in options.only:
        with progress(console, "speed") as report:
            _measure_speed(results, options, train, precisions, report)
        _show("Pairs a second (medians; in brackets: times the peer's)", speed_table(results))
    if "quality" in options.only:
        with progress(console, "quality") as report:
            results.quality = compare_quality(
                QUALITY_PAIRS if not options.quick else 256, range(1 if options.quick else SEEDS),
                train=train, precisions=precisions, report=report,
            )  # fmt: skip
        _show("Held-out quality after one epoch", quality_lines(results))


def _precisions(asked: Literal["auto", "fp32", "bf16"]) -> Precisions:
    """Of both contestants. With `auto` Likeness has what its probe finds faster, and the peer its default."""
    if asked != "auto":
        return {"likeness": asked, "peer": asked}
    measured = probed()
    print(measured)
    return {"likeness": measured.choice, "peer": "fp32"}


def _measure_speed(
    results: Results, options: argparse.Namespace, train: Train, precisions: Precisions, report: Report
) -> None:
    rounds = 1 if options.quick else ROUNDS
    tokenizer = TextTokenizer.of_folder(locate(MODEL, None))
    done = 0
    for kind in KINDS:
        batch_size, steps = BATCHES[kind], 3 if options.quick else STEPS[kind]
        training = Training(texts(kind, batch_size * steps), batch_size, steps, precisions=precisions)
        speed = Speed(batch_size, *tokens_of(training.texts, tokenizer))
        for number in range(rounds):
            names: list[Name] = ["likeness", "peer"]
            for name in names[:: 1 if number % 2 else -1]:
                report(done, len(KINDS) * rounds * 2, f"{kind} pairs, {TITLES[name]}, round {number + 1}")
                _keep(speed, name, train(name, training))
                done += 1
        results.speeds[kind] = speed
    report(done, done, "")


def _measure_growth(results: Results, options: argparse.Namespace, precision: Precision, report: Report) -> None:
    """Each batch in one pass, and in micro-batches of the size that the cached one has."""
    sizes = GROWTH[:2] if options.quick else GROWTH
    cases = [(size, 0) for size in sizes] + [(size, CACHED[1]) for size in sizes if size > CACHED[1]]
    for number, (size, micro) in enumerate(cases):
        report(number, len(cases), f"batch {size}" + (f", micro-batches of {micro}" if micro else ", one pass"))
        results.growth[size, micro] = grown("short", size, micro, steps=3, precision=precision)
    report(len(cases), len(cases), "")


def _keep(speed: Speed, name: Name, trained: Trained) -> None:
    speed.seconds.setdefault(name, []).append(trained.seconds)


def _show(heading: str, lines: Iterable[str]) -> None:
    print("", f"## {heading}", "", *lines, sep="\n", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, defaults filled in. Exits on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.train",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="few steps of everything; its figures mean little")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="leave out the other parts")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help="of both; auto: what a probe finds faster for Likeness, and the other's default (%(default)s)",
    )
    parser.add_argument("--plot", type=Path, metavar="PATH", help=f"where a full run draws its figure ({PLOT})")
    parser.add_argument("--no-plot", action="store_true", help="draw none")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the raw figures there")
    parser.add_argument("--strict", action="store_true", help="fail if a floor was not reached, or not measured")
    options = parser.parse_args(arguments)
    if options.no_plot or options.quick:
        options.plot = None
    elif options.plot is None:
        options.plot = PLOT
    return options


if __name__ == "__main__":
    main()
