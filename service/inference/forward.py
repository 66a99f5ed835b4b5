"""An encoder in memory as the batcher calls it: its forward in the modes that were chosen for it."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from encoders.loading import AnyEncoder
from service.inference.modes import REFERENCE, Choice, Mode, Runs, Tokens, Vectors, choose, confirm

log = structlog.get_logger(__name__)


class Forward:
    """An encoder's forward. Until its modes are chosen it runs in the reference."""

    def __init__(self, name: str, encoder: AnyEncoder, version: str) -> None:
        """version: what decides the vectors, in a string; see `version`."""
        self.name = name
        self._version = version
        self.encoder = encoder
        self.choice = Choice()
        self.has_chosen = False
        self._runs = Runs(encoder)
        self._single = self._several = self._runs[REFERENCE]

    @property
    def version(self) -> str:
        """The same for forwards that give the same vectors, but for rounding of float32."""
        rough = "torch-bf16" in (self.choice.single, self.choice.several)
        return f"{self._version} bf16" if rough else self._version

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return self._runs.size_bytes

    @property
    def padding(self) -> float:
        """The share of its operations so far that padding took."""
        return self._runs.padding

    @property
    def architecture(self) -> str:
        """The same for encoders that are equally fast."""
        shapes = [tuple(parameter.shape) for parameter in self.encoder.parameters()]
        return f"{type(self.encoder).__name__} {shapes}"

    def choose_modes(self, asked: Mode | None, *, known: Choice | None = None) -> Choice:
        """Find the fastest, and use them from then on. Any thread may call it, beside passes.

        known: what was found for another encoder of this architecture, and has only to be confirmed.
        """
        choice = confirm(self._runs, known) if known else choose(self._runs, asked)
        self._single, self._several = self._runs[choice.single], self._runs[choice.several]
        self.choice, self.has_chosen = choice, True
        self._runs.keep(choice)
        for mode, why in choice.refused:
            log.warning("mode_refused", model=self.name, mode=mode, reason=why)
        log.info("modes_chosen", model=self.name, single=choice.single, several=choice.several)
        return choice

    def __call__(self, tokens: Sequence[Tokens]) -> Vectors:
        """Token ids of n texts, each (length,), or n vectors for an adapter → unit vectors (n, d)."""
        return (self._single if len(tokens) == 1 else self._several)(tokens)
