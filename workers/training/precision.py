"""The precision of an encoder's arithmetic: float32, or bfloat16 by autocast where that is faster on this machine.

Weights, optimizer and loss are float32 either way. Which one is faster depends on the processor: bfloat16 has units
of its own in some (AMX and AVX-512 BF16 in x86, every recent GPU) and is emulated, slowly, in others. So a few passes
of the job's own encoder over texts of its own are timed both ways.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from encoders.loading import AnyEncoder
from encoders.vectors import Rows

Precision = Literal["fp32", "bf16"]

#: bfloat16 rounds to 3 significant digits: less than this much faster isn't worth it, nor sure with other programs
#: running.
WORTHWHILE_SPEEDUP = 1.15
#: With fewer steps, the passes of the probe would cost more than could be saved.
FEWEST_STEPS_TO_PROBE = 50
#: A probe's passes are over no more tokens than this: first few, then more if those leave it open. An emulated bfloat16
#: is an order of magnitude slower, which few tokens show as well.
PROBED_TOKENS = (256, 2048)
_HOPELESS = 2.0
#: Passes that are timed, of each precision, after one that isn't.
_PASSES = 3


@dataclass(frozen=True)
class Probe:
    """Median seconds of a forward and backward pass over the same texts."""

    fp32: float
    bf16: float

    @property
    def choice(self) -> Precision:
        return "bf16" if self.fp32 >= WORTHWHILE_SPEEDUP * self.bf16 else "fp32"

    def __str__(self) -> str:
        return (
            f"Precision: {self.choice}. A pass over a sample takes {self.fp32 * 1000:.0f} ms in fp32 and "
            f"{self.bf16 * 1000:.0f} ms in bf16 on this machine; bf16 is chosen where it is {WORTHWHILE_SPEEDUP:g} "
            "times as fast"
        )


@contextmanager
def in_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run an encoder's forward pass in this precision."""
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16):
        if device.type == "cpu":
            # On the CPU the flash kernel's backward pass is slow for short texts in bfloat16.
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield


def embed(encoder: AnyEncoder, inputs: Rows, precision: Precision) -> Tensor:
    """What `encoder` gives for tokens or vectors, (n, D), in the weights' own precision whatever it was computed in."""
    with in_precision(precision, encoder.device):
        embeddings: Tensor = encoder(inputs)
    return embeddings.to(next(encoder.parameters()).dtype)


def probe(encoder: AnyEncoder, inputs: Rows) -> Probe:
    """Time both over the first of these texts, as PROBED_TOKENS says. Leaves no gradients; draws random numbers."""
    ends = np.cumsum([len(ids) for ids in inputs])
    few, many = (max(1, int(np.searchsorted(ends, most, side="right"))) for most in PROBED_TOKENS)
    measured = _of_sample(encoder, inputs[:few])
    return measured if measured.bf16 > _HOPELESS * measured.fp32 else _of_sample(encoder, inputs[:many])


def _of_sample(encoder: AnyEncoder, sample: Rows) -> Probe:
    """Median times of each precision, taken in turns."""
    seconds: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(1 + _PASSES):
        for precision, taken in seconds.items():
            taken.append(_seconds_of_a_pass(encoder, sample, precision))
    # The first warms caches up, and chooses kernels.
    return Probe(*(statistics.median(taken[1:]) for taken in seconds.values()))


def _seconds_of_a_pass(encoder: AnyEncoder, inputs: Rows, precision: Precision) -> float:
    began = time.perf_counter()
    embed(encoder, inputs, precision).sum().backward()  # type: ignore[no-untyped-call]
    if encoder.device.type == "cuda":
        torch.cuda.synchronize(encoder.device)
    seconds = time.perf_counter() - began
    encoder.zero_grad()
    return seconds
