"""Where the time of a training step goes: `python -m bench.train_step`.

Forward, loss, backward and optimizer are timed by hooks; all else that happens between two reports of a warm loop
(reading, views, clipping, statistics, reporting) is outside. Also printed: what measuring the spread of a batch's
embeddings costs, the speed in micro-batches, and what the precision's probe finds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from api_schemas.defaults import LEARNING_RATE, MODEL, TEMPERATURE
from bench.data_pairs import pairs, words
from bench.machine import describe, use_physical_cores
from encoders.registry import locate
from encoders.text import TextEncoder
from workers.data.preparation import prepare
from workers.data.prepared import Prepared
from workers.training.config import LossConfig, TrainingConfig
from workers.training.precision import probe
from workers.training.spread import spread
from workers.training.tokens import select
from workers.training.trainer import StepReport, Trainer

_WARM_UP_STEPS = 2


@dataclass
class Clock:
    """Seconds inside of what is timed, since it was last read."""

    inside: float = 0.0
    began: float = field(default=0.0, repr=False)

    def start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def stop(self, *_: Any) -> None:
        self.inside += time.perf_counter() - self.began

    def read(self) -> float:
        seconds, self.inside = self.inside, 0.0
        return seconds


@contextmanager
def timed(trainer: Trainer) -> Iterator[Clock]:
    """Time the forward passes, the loss, the backward passes and the optimizer of a trainer."""
    clock, backward = Clock(), Tensor.backward

    def timed_backward(*arguments: Any, **named: Any) -> None:
        clock.start()
        backward(*arguments, **named)  # type: ignore[no-untyped-call]
        clock.stop()

    for module in (trainer.encoder, trainer.loss):
        module.register_forward_pre_hook(clock.start)
        module.register_forward_hook(clock.stop)
    trainer.optimizer.register_step_pre_hook(clock.start)
    trainer.optimizer.register_step_post_hook(clock.stop)
    Tensor.backward = timed_backward  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        Tensor.backward = backward  # type: ignore[method-assign]


@dataclass(frozen=True)
class Steps:
    """Medians over warm steps."""

    seconds: float  # from one report to the next
    outside: float  # share of it that is in none of the timed parts
    pairs_per_second: float


def measure(trainer: Trainer) -> Steps:
    """Run a trainer to its end."""
    walls: list[float] = []
    inside: list[float] = []
    rows: list[float] = []
    last = time.perf_counter()

    def on_step(report: StepReport) -> None:
        nonlocal last
        now = time.perf_counter()
        walls.append(now - last)
        inside.append(clock.read())
        rows.append(report.pairs_per_second * report.seconds)
        last = now

    with timed(trainer) as clock:
        trainer.run(on_step=on_step, should_stop=lambda: False)
    shares = [1 - within / wall for within, wall in zip(inside, walls, strict=True)][_WARM_UP_STEPS:]
    warm = walls[_WARM_UP_STEPS:]
    return Steps(statistics.median(warm), statistics.median(shares), sum(rows[_WARM_UP_STEPS:]) / sum(warm))


def trainer_of(folder: Path, data: Prepared, *, batch_size: int, micro_batch_size: int, steps: int) -> Trainer:
    config = TrainingConfig(
        loss=LossConfig(temperature=TEMPERATURE), n_epochs=100, batch_size=batch_size, learning_rate=LEARNING_RATE,
        warmup_ratio=0.1, weight_decay=0.01, max_grad_norm=1.0, max_steps=steps, max_seq_length=256, seed=0,
        precision="fp32", micro_batch_size=micro_batch_size,
    )  # fmt: skip
    return Trainer(TextEncoder.load(folder), [data], config)


def milliseconds(call: Callable[[], object], times: int = 20) -> float:
    """Median of a call that was made before."""
    call()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    print("\n".join(describe(torch.device("cpu"), use_physical_cores())))
    folder = locate(MODEL, None)
    encoder = TextEncoder.load(folder).train()
    with tempfile.TemporaryDirectory() as scratch:
        rows = pairs(40 * options.batch_size, words())
        data = prepare(rows, Path(scratch) / "pairs", tokenizer=encoder.tokenizer, limit=encoder.max_seq_length)
        table = torch.randn(2 * options.batch_size, encoder.dimension)
        print(f"Statistics of {len(table)} embeddings: {milliseconds(lambda: spread(table)):.1f} ms")
        print(probe(encoder, select(data, np.arange(2 * options.batch_size))))
        for micro_batch_size in (options.batch_size, options.batch_size // 4):
            trainer = trainer_of(
                folder, data, batch_size=options.batch_size, micro_batch_size=micro_batch_size, steps=options.steps
            )
            found = measure(trainer)
            print(
                f"Batch {options.batch_size}, micro-batch {micro_batch_size}: {found.seconds:.3f} s a step, "
                f"{found.pairs_per_second:.1f} pairs/s, {found.outside:.1%} outside forward, backward and optimizer"
            )


if __name__ == "__main__":
    main()
