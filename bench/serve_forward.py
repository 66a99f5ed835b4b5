"""The bare forward of a mode, without queue and HTTP: JSON of the texts on stdin, texts a second on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import torch

from encoders.registry import locate
from encoders.text import TextEncoder
from service.inference.forward import Forward
from service.inference.modes import Mode


def bare(model: str, mode: str, texts: Sequence[str], *, batch: int, lanes: int, seconds: float) -> float:
    """Texts a second of passes over `batch` tokenized texts, `lanes` at a time, in a process of its own."""
    asked = {"model": model, "mode": mode, "texts": list(texts), "batch": batch, "lanes": lanes, "seconds": seconds}
    done = subprocess.run(
        [sys.executable, "-m", "bench.serve_forward"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def _measured(model: str, mode: Mode, texts: Sequence[str], batch: int, lanes: int, seconds: float) -> float:
    encoder = TextEncoder.load(locate(model, None), device="cuda" if torch.cuda.is_available() else "cpu")
    forward = Forward(model, encoder, "")
    forward.choose_modes(mode)
    tokens = [text.ids for text in encoder.tokenize(texts)]
    batches = [tokens[start : start + batch] for start in range(0, len(tokens) - batch + 1, batch)]
    forward(batches[0])
    counts = [0] * lanes
    began = time.perf_counter()

    def run(lane: int) -> None:
        number = lane
        while time.perf_counter() - began < seconds:
            forward(batches[number % len(batches)])
            counts[lane] += batch
            number += lanes

    threads = [threading.Thread(target=run, args=(lane,)) for lane in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


if __name__ == "__main__":
    print(_measured(**json.load(sys.stdin)))
