"""Time and memory of a training step, measured: a few real steps of an encoder on some of a file's texts, or of an
adapter on vectors of the file's dimension.

Run as `python -m workers.training.probe` by `workers.inspect`, with what to measure on standard input: in a process of
its own, so that a lack of memory ends that one only and the peak of memory is the training's own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from api_schemas.defaults import LEARNING_RATE, TEMPERATURE
from encoders.loading import AnyEncoder
from encoders.text import TextEncoder
from encoders.vectors import VectorAdapter
from workers.training.inputs import Inputs
from workers.training.losses import NTXentLoss

#: What all steps together may take, in seconds.
_BUDGET = 8.0
_FIRST_TEXTS = 8
_MOST_STEPS = 3


class Step(NamedTuple):
    """One step that was run."""

    texts: int  # or vectors
    tokens: int  # or numbers
    seconds: float
    peak_bytes: int  # of the process so far, or of the GPU


def probe(folder: Path, texts: Sequence[str], texts_per_step: int) -> dict[str, Any]:
    """Run training steps of a folder's encoder.

    Texts are used again where a step needs more than there are. Returns what `measured` returns. Raises EncoderError.
    """
    encoder = TextEncoder.load(folder, device=_device()).train()
    return measured(encoder, [each.ids for each in encoder.tokenize(list(islice(cycle(texts), texts_per_step)))])


def probe_adapter(dimension: int, vectors_per_step: int) -> dict[str, Any]:
    """Run training steps of a linear adapter, on random vectors: which they are changes no time."""
    adapter = VectorAdapter.untrained("linear", dimension, seed=0, device=_device()).train()
    rows = np.random.default_rng(0).standard_normal((vectors_per_step, dimension), dtype=np.float32)
    return measured(adapter, rows)


def measured(encoder: AnyEncoder, tokens: Inputs) -> dict[str, Any]:
    """Run training steps in this process, whose peak of memory is taken for theirs.

    Steps double in size as long as there is time; if the last is not a whole one, time and memory go on in a line with
    the tokens, as from the last but one to the last. Returns `device`, `seconds` (of a whole step), `peak_bytes`,
    `texts` (of the largest step) and `steps` (run of that size).
    """
    steps = _growing(_Steps(encoder), tokens)
    largest = [step for step in steps if step.texts == steps[-1].texts]
    last = largest[-1]._replace(seconds=float(np.median([step.seconds for step in largest])))
    before = next((step for step in reversed(steps) if step.texts < last.texts), None)
    whole = extrapolated(before, last, sum(map(len, tokens)))
    return {
        "device": _name(encoder.device),
        "seconds": whole.seconds,
        "peak_bytes": whole.peak_bytes,
        "texts": last.texts,
        "steps": len(largest),
    }


def extrapolated(before: Step | None, last: Step, tokens: int) -> Step:
    """A step of so many tokens, as two smaller ones (or one) let expect, or `last` if it was of so many."""
    more = tokens - last.tokens
    if not more:
        return last
    before = before or Step(0, 0, 0.0, 0)  # in proportion, which is more than it will be
    growth = more / max(1, last.tokens - before.tokens)
    return Step(
        texts=last.texts,
        tokens=tokens,
        seconds=last.seconds + growth * max(0.0, last.seconds - before.seconds),
        peak_bytes=last.peak_bytes + round(growth * (last.peak_bytes - before.peak_bytes)),
    )


def _growing(steps: _Steps, tokens: Inputs) -> list[Step]:
    """Steps in the order they were run; a whole one up to three times."""
    size = min(_FIRST_TEXTS, len(tokens))
    steps.run(tokens[:size])  # allocates the optimizer's memory, and warms caches up
    taken = [steps.run(tokens[:size])]
    began = time.perf_counter()
    while time.perf_counter() - began + 2 * taken[-1].seconds < _BUDGET:
        size = min(2 * size, len(tokens))
        if sum(step.texts == size for step in taken) == _MOST_STEPS:
            break
        taken.append(steps.run(tokens[:size]))
    return taken


class _Steps:
    """Forward, loss, backward and AdamW, as in training; two texts in a row are alike."""

    def __init__(self, encoder: AnyEncoder) -> None:
        self._encoder = encoder
        self._loss = NTXentLoss(TEMPERATURE)
        self._optimizer = torch.optim.AdamW(encoder.parameters(), lr=LEARNING_RATE, fused=True)

    def run(self, tokens: Inputs) -> Step:
        began = time.perf_counter()
        self._optimizer.zero_grad()
        self._loss(self._encoder(tokens), torch.arange(len(tokens)) // 2).backward()
        self._optimizer.step()
        if self._encoder.device.type == "cuda":
            torch.cuda.synchronize()
        return Step(len(tokens), sum(map(len, tokens)), time.perf_counter() - began, _peak_bytes())


def _peak_bytes() -> int:
    """The most memory that this process, or its part of the GPU, ever held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Not getrusage, whose peak is inherited from the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def main() -> int:
    """Read `folder` and `texts`, or `dimension`, and `texts_per_step` as JSON; write what `measured` returns."""
    asked = json.load(sys.stdin)
    try:
        if "dimension" in asked:
            found = probe_adapter(asked["dimension"], asked["texts_per_step"])
        else:
            found = probe(Path(asked["folder"]), asked["texts"], asked["texts_per_step"])
    except Exception as error:  # noqa: BLE001 (the edge of the process: whoever started it is told in a sentence)
        sys.stderr.write(f"{type(error).__name__}: {error}".replace("\n", " ") + "\n")
        return 1
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
