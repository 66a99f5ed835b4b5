"""Which faults a run fires, drawn with its seed: as many of each row as asked for, its kinds in turn."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tests.chaos.faults import ROWS
from tests.chaos.faults.row import Inject, Row
from tests.chaos.tools import Tools

Item = TypeVar("Item")


@dataclass(frozen=True)
class Card:
    """One fault to fire."""

    row: Row
    kind: str

    @property
    def inject(self) -> Inject:
        return self.row.kinds[self.kind]

    @property
    def alone(self) -> bool:
        return self.kind in self.row.alone


class Deck:
    """The cards of one seed."""

    def __init__(self, quotas: Mapping[int, int], rng: random.Random, tools: Tools) -> None:
        """quotas: by row, how many faults have to fire."""
        self.quotas = dict(quotas)
        self._rng = rng
        self._kinds = {number: _in_random_order(possible(ROWS[number], tools), rng) for number in quotas}
        self._drawn = dict.fromkeys(quotas, 0)

    def deal(self, fired: Mapping[int, int]) -> list[Card]:
        """The cards that are wanted beside those that have fired, by row, in an order that the seed decides."""
        wanted = [
            number
            for number, quota in self.quotas.items()
            for _ in range(math.ceil((quota - fired.get(number, 0)) / ROWS[number].per_shot))
            if self._kinds[number]
        ]
        return _in_random_order([self._draw(number) for number in wanted], self._rng)

    def _draw(self, number: int) -> Card:
        kinds = self._kinds[number]
        card = Card(ROWS[number], kinds[self._drawn[number] % len(kinds)])
        self._drawn[number] += 1
        return card


class Hand:
    """Cards that were picked by name, as for the short run."""

    def __init__(self, picked: Iterable[tuple[int, str]]) -> None:
        """picked: row and kind of each. Raises KeyError for one that there isn't."""
        self._cards = [Card(ROWS[number], kind) for number, kind in picked]
        for card in self._cards:
            card.row.kinds[card.kind]
        self.quotas = Counter(card.row.number for card in self._cards)

    def deal(self, fired: Mapping[int, int]) -> list[Card]:
        """Those of rows of which too few have fired."""
        return [card for card in self._cards if fired.get(card.row.number, 0) < self.quotas[card.row.number]]


def quotas(rows: Iterable[int], *, full: bool, seed_index: int, seeds: int) -> dict[int, int]:
    """What one seed of several has to fire of each row, so that together they fire what is wanted."""
    found = {}
    for number in rows:
        wanted = ROWS[number].wanted(full=full)
        found[number] = wanted * (seed_index + 1) // seeds - wanted * seed_index // seeds
    return {number: count for number, count in found.items() if count}


def not_run(rows: Iterable[int], tools: Tools) -> dict[str, str]:
    """Kinds that this machine has no tool for, and why."""
    return {
        f"{number}. {kind}": reason
        for number in rows
        if number in ROWS
        for kind in ROWS[number].kinds
        if (reason := reason_against(number, kind, tools)) is not None
    }


def reason_against(number: int, kind: str, tools: Tools) -> str | None:
    """Why this machine can't do a kind; None if it can."""
    tool = ROWS[number].needs.get(kind)
    return None if tool is None else tools.missing(tool)


def possible(row: Row, tools: Tools) -> list[str]:
    """The kinds of a row that this machine has the tools for."""
    return [kind for kind in row.kinds if reason_against(row.number, kind, tools) is None]


def _in_random_order(cards: list[Item], rng: random.Random) -> list[Item]:
    return rng.sample(cards, len(cards))
