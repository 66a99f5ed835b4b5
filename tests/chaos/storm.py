"""Row 25: two or three faults of any row every five seconds, whatever the others are doing.

Each fault's own bounds don't hold in a storm, and are not asked about. What is: every figure of the last table.
"""

from __future__ import annotations

import random
import threading
import time

import structlog

from tests.chaos.deck import Card, possible
from tests.chaos.faults import ROWS
from tests.chaos.findings import Figure
from tests.chaos.shots import Shot
from tests.chaos.world import World

log = structlog.get_logger("chaos")

NUMBER = 25
FULL_SECONDS = 3600.0
_EVERY_SECONDS = 5.0
#: More of them at once would leave nobody who works.
_MOST_AT_ONCE = 6
#: Not these, which hold workers still to have a job where they want it, or start members anew.
_LEFT_OUT = (5, 18, 24)
#: One job may be hit so often that it is given up, which is then the right thing to say of it.
_DIED_TOO_OFTEN = frozenset({"worker_lost", "poisoned_job"})


class Storm:
    """Faults at random, from a seed."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._rng = random.Random(f"storm-{seed}")
        self._cards = [
            Card(row, kind)
            for row in ROWS.values()
            if row.number not in _LEFT_OUT
            for kind in possible(row, world.tools)
            if row.needs.get(kind) != "network namespaces"
        ]
        self.shots: list[Shot] = []

    def rage(self, seconds: float) -> None:
        """Fire for so long, and wait for what is underway."""
        if seconds > 0:
            self._world.load.tolerate(_DIED_TOO_OFTEN)
        threads: list[threading.Thread] = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            threads = [thread for thread in threads if thread.is_alive()]
            for card in self._rng.sample(self._cards, self._rng.choice((2, 3))):
                if len(threads) < _MOST_AT_ONCE:
                    threads.append(threading.Thread(target=self._fire, args=[card], daemon=True))
                    threads[-1].start()
            time.sleep(_EVERY_SECONDS)
        for thread in threads:
            thread.join()

    def _fire(self, card: Card) -> None:
        shot = Shot(card.row.number, card.kind, self._world, random.Random(self._rng.random()))
        self.shots.append(shot)
        try:
            card.inject(shot)
        except Exception as error:  # noqa: BLE001 — what a fault stands on may be gone by another one
            log.info("fault_missed", fault=shot.name, storm=True, reason=repr(error)[:200])
        shot.findings = [finding for finding in shot.findings if finding.figure is not Figure.OUT_OF_BOUNDS]
        shot.deaths.clear()
