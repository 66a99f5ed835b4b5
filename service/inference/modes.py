"""The ways to compute an encoder's forward, and which of them is fastest here."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import structlog
import torch

from encoders import session
from encoders.graph import has_graph
from encoders.loading import AnyEncoder
from encoders.session import Session
from encoders.text import TextEncoder

log = structlog.get_logger(__name__)

Mode = Literal["torch-fp32", "torch-bf16", "onnxruntime-fp32"]
#: The one that every encoder has, and that others are held against.
REFERENCE: Mode = "torch-fp32"
#: A mode whose vector of some text is further than this from the reference's is refused.
LOWEST_COSINE = 0.9995

#: A text's ids (length,), or a vector for an adapter.
Tokens = npt.NDArray[np.int32] | npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]
Run = Callable[[Sequence[Any]], Vectors]

#: How much memory the weights take in a mode, to those in float32. A session lays out matrices in its own way, beside
#: those that it was given.
_SHARES: dict[Mode, float] = {"torch-fp32": 1.0, "torch-bf16": 0.5, "onnxruntime-fp32": 1.7}
#: How much more than the reference a model may take once its modes are chosen.
LARGEST_SHARE = max(share for mode, share in _SHARES.items() if mode != REFERENCE)
#: Texts that modes are tried with, by their lengths in tokens: those of a batch, and a long one.
_LENGTHS = (4, 5, 6, 6, 7, 8, 8, 9, 10, 11, 12, 12, 13, 14, 16, 18, 20, 24, 30, 48)
_LONG = 256
_SINGLE = 12
_ROUNDS = 5
#: A mode has to be so much faster than the one that is there: noise is no reason to change.
_MARGIN = 0.95


class ModeError(Exception):
    """A mode can't be used; the message says why."""


@dataclass(frozen=True)
class Choice:
    """The mode for a single text, the one for several, and those that were refused, and why."""

    single: Mode = REFERENCE
    several: Mode = REFERENCE
    refused: tuple[tuple[Mode, str], ...] = ()


def possible(encoder: AnyEncoder) -> tuple[Mode, ...]:
    """The modes that make sense for an encoder on this machine, the reference first."""
    found: list[Mode] = [REFERENCE]
    if isinstance(encoder, TextEncoder):
        if computes_bf16(encoder.device):
            found.append("torch-bf16")
        if encoder.device.type == "cpu" and has_graph(encoder) and session.is_installed():
            found.append("onnxruntime-fp32")
    return tuple(found)


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has arithmetic for bfloat16; emulated, it is many times slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Runs:
    """An encoder's forward in several modes. What a mode needs is made when it is first asked for."""

    def __init__(self, encoder: AnyEncoder) -> None:
        self.encoder = encoder
        self._made: dict[Mode, Run] = {REFERENCE: encoder.embed}
        self._session: Session | None = None

    def __getitem__(self, mode: Mode) -> Run:
        """The forward in a mode. Raises ModeError."""
        if mode not in self._made:
            self._made[mode] = self._make(mode)
        return self._made[mode]

    def keep(self, choice: Choice) -> None:
        """Let go of what is not used."""
        used = {choice.single, choice.several, REFERENCE}
        self._made = {mode: run for mode, run in self._made.items() if mode in used}
        if "onnxruntime-fp32" not in used:
            self._session = None

    @property
    def size_bytes(self) -> int:
        """About how much memory the weights take in all modes that are made."""
        own = sum(parameter.numel() * parameter.element_size() for parameter in self.encoder.parameters())
        return int(own * sum(_SHARES[mode] for mode in self._made))

    @property
    def padding(self) -> float:
        """The share of operations so far that padding took; the modes of torch have none."""
        return self._session.padding if self._session else 0.0

    def _make(self, mode: Mode) -> Run:
        encoder = self.encoder
        if mode not in possible(encoder):
            raise ModeError("this model or this machine does not support it")
        assert isinstance(encoder, TextEncoder)  # noqa: S101 — only those have more than the reference
        if mode == "torch-bf16":
            return copy.deepcopy(encoder).to(torch.bfloat16).eval().embed
        self._session = Session(encoder, threads=torch.get_num_threads())
        return self._session.embed


def choose(runs: Runs, asked: Mode | None) -> Choice:
    """The fastest modes for an encoder that agree with the reference; `asked`, if that is one.

    Takes a second or two for an encoder of 23 million weights. Passes that run meanwhile make its figures worse, and
    those of all modes alike.
    """
    refused: list[tuple[Mode, str]] = []
    wanted = possible(runs.encoder) if asked is None else (asked,)
    agreeing = [REFERENCE, *_agreeing(runs, [mode for mode in wanted if mode != REFERENCE], refused)]
    if asked is not None:
        mode = asked if asked in agreeing else REFERENCE
        return Choice(mode, mode, tuple(refused))
    if len(agreeing) == 1:
        return Choice(refused=tuple(refused))
    candidates = {mode: runs[mode] for mode in agreeing}
    single = _fastest(candidates, _texts(runs.encoder, [_SINGLE]))
    several = _fastest(candidates, _texts(runs.encoder, _LENGTHS))
    return Choice(single, several, tuple(refused))


def confirm(runs: Runs, choice: Choice) -> Choice:
    """The modes of another encoder of the same architecture, where they agree with the reference for this one too."""
    refused: list[tuple[Mode, str]] = []
    agreeing = [REFERENCE, *_agreeing(runs, {choice.single, choice.several} - {REFERENCE}, refused)]
    single, several = (mode if mode in agreeing else REFERENCE for mode in (choice.single, choice.several))
    return Choice(single, several, tuple(refused))


def _agreeing(runs: Runs, modes: Iterable[Mode], refused: list[tuple[Mode, str]]) -> list[Mode]:
    agreeing: list[Mode] = []
    for mode in modes:
        try:
            cosine = _lowest_cosine(runs, mode)
        except Exception as error:  # noqa: BLE001 — whatever a library can't do, another mode can
            refused.append((mode, str(error) or type(error).__name__))
            continue
        if cosine >= LOWEST_COSINE:
            agreeing.append(mode)
        else:
            refused.append((mode, f"lowest cosine to {REFERENCE} {cosine:.5f}, not {LOWEST_COSINE}"))
    return agreeing


def _lowest_cosine(runs: Runs, mode: Mode) -> float:
    run = runs[mode]
    texts = _texts(runs.encoder, [*_LENGTHS, _LONG])
    expected, found = runs[REFERENCE](texts), run(texts)
    return float(np.einsum("nd,nd->n", expected, found).min())


def _texts(encoder: AnyEncoder, lengths: Sequence[int]) -> list[Tokens]:
    """Random tokens between those that open and close a text."""
    assert isinstance(encoder, TextEncoder)  # noqa: S101
    rng = np.random.default_rng(0)
    (empty,) = (text.ids for text in encoder.tokenize([""]))
    texts = []
    for length in lengths:
        inner = max(min(length, encoder.max_seq_length) - len(empty), 1)
        words = rng.integers(0, encoder.tokenizer.vocabulary_size, inner).astype(np.int32)
        texts.append(np.concatenate([empty[:-1], words, empty[-1:]]))
    return texts


def _fastest(modes: dict[Mode, Run], texts: list[Tokens]) -> Mode:
    seconds: dict[Mode, list[float]] = {mode: [] for mode in modes}
    for round_ in range(_ROUNDS + 1):
        for mode, run in modes.items():
            began = time.perf_counter()
            run(texts)
            if round_:  # the first warms up
                seconds[mode].append(time.perf_counter() - began)
    medians = {mode: statistics.median(times) for mode, times in seconds.items()}
    best = min(medians, key=medians.__getitem__)
    log.debug("modes_timed", texts=len(texts), **{mode: round(1e3 * median, 2) for mode, median in medians.items()})
    return best if medians[best] < _MARGIN * medians[REFERENCE] else REFERENCE
