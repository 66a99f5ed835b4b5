"""One batch size of Likeness' trainer in a process of its own, so that its peak of memory is its own.

`python -m bench.train_growth KIND BATCH MICRO STEPS PRECISION` prints a `Grown` as JSON. MICRO 0: one pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import cast

from bench.machine import peak_bytes, resident_bytes, use_physical_cores
from bench.train_contestants import MODEL, Precisions, Training, config
from bench.train_data import Kind, prepared, texts
from encoders.registry import locate
from encoders.text import TextEncoder
from workers.training.precision import Precision
from workers.training.trainer import StepReport, Trainer
from workers.training_environment import training_environment

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Grown:
    """What a batch size costs. Bytes are above what the process held with its model and before the first step."""

    batch_size: int
    micro_batch_size: int  # the batch itself: one pass
    seconds: float  # of a step, the median of all but the first
    peak_bytes: int

    @property
    def pairs_per_second(self) -> float:
        return self.batch_size / self.seconds


def grown(kind: Kind, batch_size: int, micro_batch_size: int, *, steps: int, precision: Precision) -> Grown | None:
    """Measured in a process of its own; None if that died, most likely for lack of memory."""
    arguments = [kind, batch_size, micro_batch_size, steps, precision]
    command = [sys.executable, "-m", "bench.train_growth", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, env=training_environment())
    return Grown(**json.loads(done.stdout)) if done.returncode == 0 else None


def measure(kind: Kind, batch_size: int, micro_batch_size: int, steps: int, precision: Precision) -> Grown:
    """In this process."""
    micro = micro_batch_size or batch_size
    precisions: Precisions = {"likeness": precision, "peer": precision}
    training = Training(
        texts(kind, batch_size * steps), batch_size, steps, precisions=precisions, micro_batch_size=micro
    )  # fmt: skip
    encoder = TextEncoder.load(locate(MODEL, None))
    seconds: list[float] = []

    def on_step(report: StepReport) -> None:
        seconds.append(report.seconds)

    with tempfile.TemporaryDirectory() as folder:
        data = prepared(training.texts, encoder.tokenizer, Path(folder) / "pairs")
        before = resident_bytes()
        Trainer(encoder, [data], config(training, rows=len(data))).run(on_step=on_step, should_stop=lambda: False)
    return Grown(batch_size, micro, median(seconds[1:]), peak_bytes() - before)


def main() -> None:
    use_physical_cores()
    kind, batch_size, micro_batch_size, steps, precision = sys.argv[1:]
    found = measure(cast(Kind, kind), int(batch_size), int(micro_batch_size), int(steps), cast(Precision, precision))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
