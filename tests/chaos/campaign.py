"""Firing a deck's faults at a world, a few at once."""

from __future__ import annotations

import itertools
import random
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import structlog

from tests.chaos.clients import NoAnswerError
from tests.chaos.deck import Card, Deck, Hand
from tests.chaos.faults import ROWS
from tests.chaos.findings import Figure, Finding
from tests.chaos.shots import Shot
from tests.chaos.world import NotReachedError, World

log = structlog.get_logger("chaos")

#: Faults that concern single jobs or workers: so many at once.
_AT_ONCE = 2
#: Between blocks of these, faults that reach every process are fired alone.
_BLOCKS = 3
#: How often faults that did not come to pass are drawn again.
_ROUNDS = 4


class Campaign:
    """The faults of one seed."""

    def __init__(self, world: World, deck: Deck | Hand, seed: int, *, until: float) -> None:
        """until: monotonic time after which no new fault is begun."""
        self._world = world
        self._deck = deck
        self._seed = seed
        self._until = until
        self._numbers = itertools.count()
        self.shots: list[Shot] = []

    def fire_all(self) -> None:
        """Fire until every row has what it wants, or time is up."""
        for _ in range(_ROUNDS):
            cards = self._deck.deal(self.fired_by_row())
            if not cards or time.monotonic() > self._until:
                return
            together, alone = [card for card in cards if not card.alone], [card for card in cards if card.alone]
            for block in range(_BLOCKS):
                with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fault") as pool:
                    list(pool.map(self._fire, self._shots(together[block::_BLOCKS])))
                for shot in self._shots(alone[block::_BLOCKS]):
                    self._fire(shot)

    def fired_by_row(self) -> Counter[int]:
        """How many faults of each row have come to pass."""
        fired: Counter[int] = Counter()
        for shot in self.shots:
            fired[shot.row] += len(shot.fires)
        return fired

    def _shots(self, cards: Iterable[Card]) -> list[Shot]:
        """A shot for each card, whose chances are of the seed and its number: one shot can't change the next."""
        return [
            Shot(card.row.number, card.kind, self._world, random.Random(f"{self._seed}-{next(self._numbers)}"))
            for card in cards
        ]

    def _fire(self, shot: Shot) -> None:
        if time.monotonic() > self._until:
            return
        self.shots.append(shot)
        began = time.monotonic()
        try:
            ROWS[shot.row].kinds[shot.kind](shot)
        except (NotReachedError, NoAnswerError) as error:
            log.info("fault_missed", fault=shot.name, reason=str(error))
        except Exception as error:  # noqa: BLE001 — a defect of this driver: the run must not pass
            shot.findings.append(Finding(Figure.UNJUDGED, shot.name, repr(error)))
            traceback.print_exc()
        shot.seconds = time.monotonic() - began
        log.info("fault", fault=shot.name, fired=len(shot.fires), seconds=round(shot.seconds, 1),
                 findings=[str(finding) for finding in shot.findings])  # fmt: skip
