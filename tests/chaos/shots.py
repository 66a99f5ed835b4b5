"""A fault on its way: what it is, whether it fired, and what it broke that it should not have."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tests.chaos.findings import Figure, Finding
from tests.chaos.moments import Armed, Firing

if TYPE_CHECKING:
    from tests.chaos.world import World

Answer = TypeVar("Answer")

#: How long the product's transactions may do nothing before PostgreSQL ends them. See storage.database.
_IDLE_TRANSACTION_SECONDS = 10.0


@dataclass(frozen=True)
class Death:
    """Who died under a job's attempt, and when (Unix time). `within`: seconds until it has to run again."""

    job_id: str
    attempt: int
    at: float
    within: float


@dataclass
class Shot:
    """One fault, or a few of a kind in a row, given to the function that does it."""

    row: int
    kind: str
    world: World
    rng: random.Random
    fires: list[str] = field(default_factory=list)  # what came to pass, each in a few words
    findings: list[Finding] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.row}. {self.kind}"

    def fire(self, how: str) -> None:
        """Write down that the fault came to pass. One that isn't proven to have fired isn't counted."""
        self.fires.append(how)
        self.world.history.note("fault", row=self.row, kind=self.kind, how=how)

    def expect(self, truth: object, text: str, figure: Figure = Figure.OUT_OF_BOUNDS) -> None:
        """Find somebody guilty unless `truth`."""
        if not truth:
            self.findings.append(Finding(figure, self.name, text))

    def within(self, seconds: float, look: Callable[[], Answer], text: str) -> Answer:
        """Look until the answer is true; expect that within `seconds`, and what the machine adds to it."""
        answer, taken = until(look, seconds + self.world.slack_seconds)
        self.expect(taken < math.inf, f"{text}: not within {seconds:.0f} s")
        return answer

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for what an order comes to, for so long on an idle machine. Whether it has."""
        return event.wait(self.world.pace.stretch(seconds))

    def await_fired(self, armed: Armed, seconds: float, *, unless: threading.Event | None = None) -> Firing | None:
        """Wait for an armed moment, for so long on an idle machine; it will not come any more once `unless` is set.

        It is taken back if it has not come.
        """
        look: Callable[[], object] = lambda: armed.fired() or (unless is not None and unless.is_set())  # noqa: E731
        until(look, self.world.pace.stretch(seconds), every=0.02)
        armed.disarm()
        return armed.fired()

    def died(self, job_id: str, attempt: int, *, at: float | None = None, lease: bool, silent: bool = False) -> None:
        """Somebody died under an attempt; `lease`: nobody is left to say so, and its lease has to run out.

        silent: nor has PostgreSQL heard of it, and may keep a row for it until it ends transactions that do nothing.
        """
        shape = self.world.fleet.shape
        ends = max(shape.lease_seconds, _IDLE_TRANSACTION_SECONDS if silent else 0.0) if lease else 0.0
        within = ends + shape.tick_seconds
        self.deaths.append(Death(job_id, attempt, at or time.time(), within + self.world.slack_seconds))


def until(look: Callable[[], Answer], seconds: float, *, every: float = 0.1) -> tuple[Answer, float]:
    """Look until the answer is true, or so long. The last answer, and how long it took; infinity if it never came."""
    began = time.monotonic()
    while True:
        answer = look()
        taken = time.monotonic() - began
        if answer:
            return answer, taken
        if taken > seconds:
            return answer, math.inf
        time.sleep(every)
