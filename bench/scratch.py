"""An encoder from scratch beside the one that comes along, both trained on the demo's pairs. `--help` tells more."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from api_schemas.defaults import MODEL, resolve
from api_schemas.inputs import SCRATCH, with_scratch
from api_schemas.methods import Method, ScratchOptions
from bench.machine import describe, device, use_physical_cores
from bench.train_data import Texts, demo, prepared, rows
from bench.train_quality import reciprocal_ranks
from encoders.prompts import Prompts
from encoders.registry import locate
from encoders.text import TextEncoder
from service.demo.docstrings import Pair
from service.demo.progress import Report, progress
from service.demo.retrieval import difference
from workers import scratch_base
from workers.training.config import TrainingConfig
from workers.training.trainer import StepReport, Trainer
from workers.untokenized import Untokenized

SEEDS = 3
LAYERS = (1, 2, 4)
QUICK_PAIRS = 512

EPILOG = """
What is measured: the mean reciprocal rank of what the demo asks, names and sentences of modules that are not trained
on, before and after a training with what `auto` stands for. Intervals are a bootstrap over the questions, each with its
mean over the seeds. Seconds are those of a training, on this machine as it is.
"""


@dataclass
class Outcome:
    """Reciprocal ranks of the questions, (questions,), before and after training with one seed, and its seconds."""

    before: np.ndarray
    after: np.ndarray
    seconds: float


def main() -> None:
    options = parse(sys.argv[1:])
    threads = use_physical_cores()
    print(*describe(torch.device(device()), threads), sep="\n")
    dataset = demo()
    train = dataset.train[: options.pairs]
    print(f"\n{len(train)} pairs to train on, {len(dataset.test)} asked about, {options.seeds} seeds\n")
    print("| Encoder | MRR before | after | difference, 95 % interval | seeds differ by | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    for title, model, method in encoders(options.layers):
        with progress(Console(stderr=True), "steps") as report:
            outcomes = [trained(model, method, train, dataset.test, seed, report) for seed in range(options.seeds)]
        print(row(title, outcomes), flush=True)


def encoders(layers: Sequence[int]) -> Iterator[tuple[str, str, Method]]:
    """A title, the base model and the method of each training: from scratch with so many layers, and fine-tuned."""
    for count in layers:
        default = " (auto)" if count == ScratchOptions().layers else ""
        method = {"contrastive": {"model": {"scratch": {"layers": count}}}}
        yield f"{SCRATCH}, layers: {count}{default}", SCRATCH, Method.model_validate(method)
    yield MODEL, MODEL, Method()


def trained(
    model: str, method: Method, pairs: Sequence[Pair], asked: Sequence[Pair], seed: int, report: Report
) -> Outcome:
    """Train a base model as a job would, and ask before and after."""
    with tempfile.TemporaryDirectory() as folder:
        return _trained(model, method, pairs, asked, seed, report, Path(folder))


def row(title: str, outcomes: Sequence[Outcome]) -> str:
    """The outcomes of all seeds as a row of the table."""
    before, after = (np.mean([getattr(each, name) for each in outcomes], axis=0) for name in ("before", "after"))
    found = difference("MRR", before, after)
    by_seed = [float(each.after.mean()) for each in outcomes]
    seconds = np.mean([each.seconds for each in outcomes])
    return (
        f"| {title} | {found.before:.3f} | {found.after:.3f} | {found.gain:+.3f}, {found.low:+.3f} … {found.high:+.3f} "
        f"| {max(by_seed) - min(by_seed):.3f} | {seconds:.0f} |"
    )


def _trained(
    model: str, method: Method, pairs: Sequence[Pair], asked: Sequence[Pair], seed: int, report: Report, scratch: Path
) -> Outcome:
    method = with_scratch(method, model)
    began = time.perf_counter()
    base = _from_scratch(method, pairs, seed, scratch) if model == SCRATCH else locate(model, None)
    encoder = TextEncoder.load(base, device=device())
    before = reciprocal_ranks(encoder, asked)
    data = prepared(Texts(pairs, encoder.max_seq_length), encoder.tokenizer, scratch / "pairs")
    resolved = resolve(method, None, rows=len(pairs), max_seq_length=encoder.max_seq_length)
    trainer = Trainer(encoder, [data], TrainingConfig.from_method(resolved.contrastive, seed=seed))

    def on_step(taken: StepReport) -> None:
        report(taken.step, taken.total_steps, f"{model}, seed {seed}, loss {taken.loss:.3f}")

    trainer.run(on_step=on_step, should_stop=lambda: False)
    return Outcome(before, reciprocal_ranks(encoder, asked), time.perf_counter() - began)


def _from_scratch(method: Method, pairs: Sequence[Pair], seed: int, scratch: Path) -> Path:
    options = method.contrastive.model.scratch
    assert options is not None
    base = scratch / "base"
    base.mkdir()
    untokenized = prepared(Texts(pairs, Untokenized.max_seq_length), Untokenized(), scratch / "untokenized")
    source = scratch_base.Source(rows(pairs), untokenized)
    scratch_base.make(base, [source], Prompts(), options, seed=seed)
    return base


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, defaults filled in. Exits on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scratch",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="does it work here? few pairs, one seed; a minute")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"trainings of each encoder ({SEEDS})")
    parser.add_argument(
        "--layers", type=int, nargs="*", default=LAYERS, help="sizes of encoders from scratch to try (%(default)s)"
    )
    parser.add_argument("--pairs", type=int, help="train on so many pairs (all there are)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.pairs, options.seeds = options.pairs or QUICK_PAIRS, 1
    return options


if __name__ == "__main__":
    main()
