"""What `auto` stands for, and what its alternatives give: held-out quality, one hyperparameter at a time.

`--help` tells more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from api_schemas.defaults import MODEL, resolve
from api_schemas.methods import Method
from bench.loss_results import markdown
from bench.machine import describe, device, use_physical_cores
from bench.train_data import demo, prepared, texts
from bench.train_quality import reciprocal_ranks
from encoders.registry import locate
from encoders.text import TextEncoder
from service.demo.progress import progress
from service.demo.retrieval import Difference, difference
from workers.training.config import TrainingConfig
from workers.training.trainer import Trainer

PAIRS = 4990
ALTERNATIVES: dict[str, tuple[float, ...]] = {
    "learning_rate": (2e-5, 1e-4, 2e-4),
    "temperature": (0.02, 0.1),
    "batch_size": (32, 128),
    "n_epochs": (1, 4),
}

EPILOG = """
What is trained: all-MiniLM-L6-v2 on the pairs of `make demo`, names of the standard library and what they stand for.
Asked about are modules that no training has seen. The first line is a job that leaves everything at `auto`; each other
line has one hyperparameter at another value. The interval is of the difference to the first line, a paired bootstrap
over the questions, for one seed: differences between seeds come on top. Takes half an hour on two cores.

examples:
  python -m bench.defaults
  python -m bench.defaults --only learning_rate temperature
  python -m bench.defaults --pairs 500      a small dataset, for which auto takes more epochs
"""


@dataclass(frozen=True)
class Line:
    """One training: what it had, and how it compares with the one that had `auto`."""

    name: str
    value: str
    steps: int
    result: Difference

    def cells(self) -> list[str]:
        mrr = f"{self.result.after:.3f}"
        if not self.name:
            return ["`auto`", self.value, str(self.steps), mrr, ""]
        interval = f"{self.result.gain:+.3f} ({self.result.low:+.3f} … {self.result.high:+.3f})"
        return [f"`{self.name}`", self.value, str(self.steps), mrr, interval]


def main() -> None:
    options = parse(sys.argv[1:])
    print(*describe(torch.device("cpu"), use_physical_cores()), sep="\n")
    with progress(Console(stderr=True), "trainings") as report:
        lines, total = [], 1 + sum(len(ALTERNATIVES[name]) for name in options.only)
        usual = resolved({}, options)
        report(0, total, "auto")
        steps, auto = trained(usual, options)
        lines.append(Line("", in_words(usual), steps, difference("MRR", auto, auto)))
        for name in options.only:
            for value in ALTERNATIVES[name]:
                report(len(lines), total, f"{name} {value:g}")
                steps, reciprocal = trained(resolved({name: value}, options), options)
                lines.append(Line(name, f"{value:g}", steps, difference("MRR", auto, reciprocal)))
        report(total, total, "")
    print(f"\n{options.pairs} pairs, seed {options.seed}\n")
    heading = ["Hyperparameter", "Value", "Steps", "MRR", "Against `auto` (95 % interval)"]
    print(*markdown(heading, [line.cells() for line in lines]), sep="\n")


def resolved(choices: dict[str, float], options: argparse.Namespace) -> Method:
    """A job's method with these choices and `auto` for everything else but the length, at which the texts are cut."""
    hyperparameters: dict[str, Any] = {"max_seq_length": 24} | {
        name: value for name, value in choices.items() if name != "temperature"
    }
    if options.max_steps is not None:
        hyperparameters["max_steps"] = options.max_steps
    loss = {"temperature": choices.get("temperature", "auto")}
    method = Method.model_validate({"contrastive": {"loss": loss, "hyperparameters": hyperparameters}})
    return resolve(method, None, rows=options.pairs, max_seq_length=256)


def in_words(method: Method) -> str:
    """What `auto` has become."""
    hyperparameters = method.contrastive.hyperparameters
    found = {name: getattr(hyperparameters, name) for name in ("learning_rate", "batch_size", "n_epochs")}
    return ", ".join(
        f"{name} {value:g}" for name, value in {**found, "temperature": method.contrastive.loss.temperature}.items()
    )


def trained(method: Method, options: argparse.Namespace) -> tuple[int, np.ndarray]:
    """Train once: its steps, and the reciprocal rank of each held-out question's answer, (n,) float64."""
    encoder = TextEncoder.load(locate(MODEL, None), device=device())
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(texts("short", options.pairs), encoder.tokenizer, Path(folder) / "pairs")
        trainer = Trainer(encoder, [data], TrainingConfig.from_method(method.contrastive, seed=options.seed))
        trainer.run(on_step=lambda _: None, should_stop=lambda: False)
    return trainer.step, reciprocal_ranks(encoder, demo().test)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, defaults filled in. Exits on a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.defaults",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=list(ALTERNATIVES), nargs="+", default=list(ALTERNATIVES))
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"how many of the pairs ({PAIRS})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, help="does it work here? its figures mean little")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
